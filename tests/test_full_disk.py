"""Commands that write to a disk of a few kilobytes, truly mounted: done, or refused with nothing left of the attempt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command_line import only_message, run
from tests.conftest import BUILD, CHECKPOINTS, BundleMaker, TinyBundleMaker
from tests.small_disk import run_with_small_disks
from tests.tiny_bundle import RECIPE

SCRIPT = """
import contextlib, io, json, shutil, subprocess, sys
from pathlib import Path
from reelquant.runtime.cli import main

def reelquant(arguments):
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main(arguments)
        except SystemExit as left:
            return left.code, out.getvalue(), err.getvalue()

def files():
    return {str(path): path.read_bytes() if path.is_file() else None for path in Path("/mnt").rglob("*")}

sizes, there, *commands = json.loads(sys.argv[1])
for arguments in commands:
    for size in sizes:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", "/mnt"], check=True)
        if there:
            shutil.copytree(there, "/mnt/there")
        before = files()
        code, out, err = reelquant(arguments)
        made = Path(arguments[-1])
        simple = made.is_file() or (made / "ranges.json").is_file()
        whole = code == 0 and (simple or reelquant(["verify", str(made)])[0] == 0)
        print(json.dumps([code, out, err, whole, files() == before]))
        subprocess.run(["umount", "/mnt"], check=True)
"""


def attempts(sizes: list[int], there: Path | None, *commands: list[object]) -> tuple[int, int]:
    """Run each command on disks of all ``sizes`` in KiB, ``there`` copied to /mnt/there; return how many failed and passed.

    A command's last argument is what it makes.
    """
    plan = [sizes, there, *commands]
    ran = run_with_small_disks(SCRIPT, json.dumps(plan, default=str))
    assert ran.returncode == 0, ran.stderr
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(lines) == len(sizes) * len(commands)
    for code, out, err, whole, untouched in lines:
        assert whole or (code, out, untouched) == (2, "", True), (code, out, err)
        if not whole:
            said = only_message(err)
            assert said.startswith("the disk is full: /mnt/") and said.endswith(
                "free some space and run the command again"
            )
    passed = sum(whole for *_, whole, _ in lines)
    return len(lines) - passed, passed


@pytest.fixture
def ready(tiny_bundle: TinyBundleMaker, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Path:
    """A folder with all that the stages read."""
    (tmp_path / "tiny.toml").write_text(RECIPE)
    command = [
        "calibrate",
        tiny_bundle("t2v").path,
        tmp_path / "ranges",
        "--data",
        "demo",
        "--prompts",
        1,
        "--steps",
        2,
    ]
    assert run(capfd, *command).code == 0
    return tmp_path


def test_generate(ready: Path, tiny_bundle: TinyBundleMaker) -> None:
    request = [
        "generate",
        tiny_bundle("t2v").path,
        "a red circle",
        "--seed",
        1,
        "--size",
        "49x96x96",
        "-o",
    ]
    assert attempts([4, 8, 2048], None, *([*request, f"/mnt/a{suffix}"] for suffix in (".mp4", ".npy"))) == (4, 2)


def test_quantize(ready: Path, tiny_bundle: TinyBundleMaker) -> None:
    command = [
        "quantize",
        tiny_bundle("t2v").path,
        ready / "ranges",
        "--recipe",
        ready / "tiny.toml",
        "--no-gate",
        "/mnt/out",
    ]
    assert attempts([4, 12, 20, 28, 36, 44, 52, 4096], None, command) == (7, 1)


def test_calibrate_writes_beside_the_bundle_too(ready: Path, tiny_bundle: TinyBundleMaker) -> None:
    there = tiny_bundle("t2v").path
    used = sum(-(-path.stat().st_size // 4096) * 4 for path in there.rglob("*") if path.is_file())
    command = ["calibrate", "/mnt/there", "--data", "demo", "--prompts", 1, "--steps", 2, "--replace"]
    assert attempts([used, used + 16], there, [*command, ready / "ranges"]) == (1, 1)


def test_build_keeps_the_manifest(tiny_bundle: TinyBundleMaker) -> None:
    there = tiny_bundle("t2v").path
    used = sum(-(-path.stat().st_size // 4096) * 4 for path in there.rglob("*") if path.is_file())
    assert attempts([used, used + 4, used + 64], there, ["build", "--engine", "onnxruntime", "/mnt/there"]) == (2, 1)


def test_export(demo_bundle: BundleMaker) -> None:
    """From stages that are kept, so that only the last one has to write."""
    demo_bundle("t2v", "int8")
    command = ["export", CHECKPOINTS / "t2v", "--quiet", "--data", "demo", "--work", BUILD / "work-t2v", "--precision"]
    assert attempts([512, 15_000], None, *([*command, name, "/mnt/out"] for name in ("fp32", "int8"))) == (4, 0)
