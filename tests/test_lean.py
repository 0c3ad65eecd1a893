"""What renders needs no torch, no onnx and no diffusers: shown in processes that cannot import them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, BundleMaker, TinyBundleMaker
from tests.walls import run_behind_wall

HEAVY: tuple[str, ...] = (
    "torch",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "diffusers",
    "transformers",
    "safetensors",
    "huggingface_hub",
)
HEAVY += ("sympy", "scipy", "pandas", "matplotlib")

IMPORT_ALL = """
import pkgutil
from importlib import import_module
import reelquant.runtime

names = [module.name for module in pkgutil.walk_packages(reelquant.runtime.__path__, "reelquant.runtime.")]
for name in names:
    import_module(name)
print(len(names))
"""
ENGINES_STAY_OUT = IMPORT_ALL + "print(sorted(sys.modules.keys() & {'openvino', 'onnxruntime', 'rich'}))"


@pytest.mark.parametrize("package", HEAVY)
def test_the_wall_refuses(package: str) -> None:
    ran = run_behind_wall(HEAVY, script=f"import {package}")
    assert ran.returncode == 1 and f"ModuleNotFoundError: No module named '{package}'" in ran.stderr


def test_every_runtime_module_can_be_imported() -> None:
    ran = run_behind_wall(HEAVY, script=ENGINES_STAY_OUT)
    assert ran.returncode == 0, ran.stderr
    files = [file for file in (ROOT / "runtime").rglob("*.py") if file != ROOT / "runtime" / "__init__.py"]
    assert ran.stdout.splitlines() == [str(len(files)), "[]"]


def test_help_and_doctor() -> None:
    ran = run_behind_wall(HEAVY, "--help")
    assert ran.returncode == 0 and "generate" in ran.stdout and "quantize" in ran.stdout, ran.stderr
    ran = run_behind_wall(HEAVY, "doctor", "--json")
    assert ran.returncode == 0, ran.stderr
    usable = {report["engine"]: report["usable"] for report in json.loads(ran.stdout)["engines"]}
    assert usable["openvino"] and usable["onnxruntime"]


def test_without_what_windows_lacks(tiny_bundle: TinyBundleMaker, tmp_path: Path) -> None:
    absent = ("fcntl", "grp", "pwd", "resource", "termios")
    for arguments in (["--help"], ["generate", "--help"], ["doctor"]):
        ran = run_behind_wall(absent, *arguments)
        assert ran.returncode == 0 and ran.stderr == "", ran.stderr
    request = ["generate", tiny_bundle("t2v").path, "a red circle", "--seed", 1, "-o", tmp_path / "a.mp4", "--json"]
    ran = run_behind_wall(absent, *request)
    assert ran.returncode in (0, 1), ran.stderr  # 1: a tiny network makes a poor clip
    assert json.loads(ran.stdout)["peak_rss_bytes"] is None and (tmp_path / "a.mp4").stat().st_size > 0


@pytest.mark.parametrize("command", ["export", "trace", "calibrate", "quantize"])
def test_the_other_commands_say_what_they_need(command: str) -> None:
    ran = run_behind_wall(HEAVY, command, "a", "b")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith(f"Error: reelquant {command} needs ")
    assert ran.stderr.endswith("which is not installed; install it with: pip install 'reelquant[export]'\n")


def test_a_real_clip_is_rendered(demo_bundle: BundleMaker, tmp_path: Path) -> None:
    bundle, clip = demo_bundle("t2v", "fp32").path, tmp_path / "clip.npy"
    prompt, small = (
        "a red circle moves left on a white background",
        ["--size", "9x96x96", "--steps", 2, "--seed", 1, "--json"],
    )
    ran = run_behind_wall(HEAVY, "generate", bundle, prompt, "-o", clip, "--engine", "openvino", *small)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert (said["engine"], said["frames"], np.load(clip).shape) == (
        "openvino",
        9,
        (9, said["height"], said["width"], 3),
    )


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_the_other_commands_of_the_runtime_run(engine: str, tiny_bundle: TinyBundleMaker, tmp_path: Path) -> None:
    bundle = tiny_bundle("t2v").path
    for arguments in (["inspect", bundle], ["verify", bundle], ["generate", bundle, "a", "-o", tmp_path / "a.mp4"]):
        extra = ["--engine", engine] if arguments[0] == "generate" else []
        assert run_behind_wall(HEAVY, *arguments, *extra).returncode == 0
