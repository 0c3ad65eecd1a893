"""Ctrl-C at any moment: exit 130, one line, and what was there is there, whole."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from reelquant.runtime.bundle import Bundle
from tests.command_line import contents, run
from tests.conftest import CHECKPOINTS, TinyBundleMaker
from tests.tiny_bundle import RECIPE

SAID = "Interrupted; nothing was left half-written."
REELQUANT = [sys.executable, "-c", "from reelquant.runtime.cli import main\nmain()"]
SMALL = ["--data", "demo", "--prompts", 1, "--steps", 2]
CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate", "shutil.copyfile"}

_at_change: Callable[[], None] | None = None
_watched = ""


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A job started in the background of a script ignores Ctrl-C, and so would the processes started here."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook cannot be removed, so there is one for all tests, which mostly does nothing."""
    if _at_change is None or event not in CHANGES or not str(arguments[0]).startswith(_watched):
        return
    if event != "open" or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
        _at_change()


@cache
def _install_watch() -> None:
    sys.addaudithook(_watch)


@contextmanager
def interrupted(folder: Path, at: int) -> Iterator[list[int]]:
    """Do what SIGINT does, just before the ``at``-th change below ``folder``; yields how many there were, in a list."""
    global _at_change, _watched
    _install_watch()
    count = [0]

    def change() -> None:
        count[0] += 1
        if count[0] == at:
            signal.default_int_handler(signal.SIGINT, None)

    _at_change, _watched = change, str(folder)
    try:
        yield count
    finally:
        _at_change = None


@pytest.fixture
def place(tiny_bundle: TinyBundleMaker, tmp_path: Path) -> Path:
    """A folder with a bundle and a recipe, into which a command will write."""
    shutil.copytree(tiny_bundle("t2v").path, tmp_path / "t2v")
    (tmp_path / "tiny.toml").write_text(RECIPE)
    return tmp_path


def calibrate(place: Path) -> list[object]:
    return ["calibrate", place / "t2v", place / "out", *SMALL, "--replace"]


def quantize(place: Path) -> list[object]:
    return [
        "quantize",
        place / "t2v",
        place / "ranges",
        place / "out",
        "--recipe",
        place / "tiny.toml",
        "--replace",
        "--no-gate",
    ]


def build(place: Path) -> list[object]:
    return ["build", place / "t2v", "--engine", "onnxruntime"]


def generate(place: Path) -> list[object]:
    return ["generate", place / "t2v", "a red circle", "-o", place / "out.mp4", "--seed", 1]


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize(("command", "least"), [(calibrate, 8), (quantize, 20), (build, 2), (generate, 2)])
def test_at_every_change_on_the_disk(
    command: Callable[[Path], list[object]], least: int, existing: bool, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if command is quantize:
        assert run(capfd, "calibrate", place / "t2v", place / "ranges", *SMALL).code == 0
    if existing:
        assert run(capfd, *command(place)).code == 0
        for file in place.rglob("out/*.json"):
            file.write_text(
                file.read_text("utf-8") + "\n", "utf-8"
            )  # so that a new folder can be told from the old one
    before = contents(place)
    with interrupted(place, at=0) as changes:
        assert run(capfd, *command(place)).code == 0
    after = contents(place)
    assert changes[0] >= least
    total = changes[0]
    for at in range(1, total + 1):
        restore(place, before)
        with interrupted(place, at):
            ran = run(capfd, *command(place))
        assert (ran.code, ran.out, ran.err.strip()) == (130, "", SAID), f"at change {at} of {total}"
        found = contents(place)
        if command is build:  # which writes down how long it took
            assert found.keys() == before.keys() == after.keys()
        else:
            assert found in (before, after), f"at change {at} of {total}"
        assert Bundle.open(place / "t2v").verify()


def restore(place: Path, names: dict[str, str]) -> None:
    """Take away what a command made anew; what it replaced may stay."""
    for name in sorted(contents(place).keys() - names.keys(), reverse=True):
        path = place / name
        path.rmdir() if path.is_dir() else path.unlink()
    for name in names.keys() - contents(place).keys():
        (place / name).touch()


def test_the_watch_sees_what_it_should(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), interrupted(tmp_path, at=2):
        (tmp_path / "first").mkdir()
        (tmp_path / "second").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
    (tmp_path / "third").touch()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_generate_in_the_middle_of_its_steps(number: signal.Signals, code: int, place: Path) -> None:
    before = contents(place)
    terminal, side = pty.openpty()
    command = [*map(str, generate(place)), "--steps", "1000", "--size", "49x960x960"]
    process = subprocess.Popen([*REELQUANT, *command], stdout=subprocess.PIPE, stderr=side, text=True)
    os.close(side)
    seen = read_until(terminal, re.compile(rb"denoise.* [1-9]\d*/1000"))
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    seen += read_until(terminal, None)
    assert (process.returncode, out) == (code, "") and b"Traceback" not in seen
    assert number != signal.SIGINT or seen.decode().count(SAID) == 1
    assert contents(place) == before


AFTERWARDS = """
import signal, sys
from reelquant.runtime.pipeline import load_pipeline
from reelquant.runtime.request import Request

for _ in range(3):
    load_pipeline(sys.argv[1], sys.argv[2]).generate(Request("a red circle", seed=1))
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        print("caught")
"""


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_when_a_pipeline_is_no_longer_there(engine: str, place: Path) -> None:
    """Each OpenVINO Core brings a stack for signal handlers, and two that go in turn left a process with neither."""
    command = [sys.executable, "-c", AFTERWARDS, str(place / "t2v"), engine]
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "caught\n" * 3), ran.stderr


def test_export_in_the_middle_of_tracing(tmp_path: Path) -> None:
    command = [
        *REELQUANT,
        "export",
        str(CHECKPOINTS / "t2v"),
        str(tmp_path / "out"),
        "--precision",
        "int8",
        "--data",
        "demo",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ends = time.monotonic() + 120
    while not list(tmp_path.glob(".reelquant-export-*/.reelquant-partial-*")):
        assert process.poll() is None and time.monotonic() < ends
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, contents(tmp_path)) == (130, "", {})
    assert [line for line in err.splitlines() if line] == ["trace t2v", SAID]


def read_until(terminal: int, wanted: re.Pattern[bytes] | None) -> bytes:
    """Read what a process shows on its terminal, until it shows ``wanted`` or ends."""
    seen = b""
    while wanted is None or not wanted.search(seen):
        try:
            data = os.read(terminal, 4096)
        except OSError:  # how Linux says that the other side is closed
            data = b""
        if not data:
            assert wanted is None, seen
            os.close(terminal)
            break
        seen += data
    return seen
