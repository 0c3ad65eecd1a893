"""A signal ends the program soon, also within one long step of native code, and leaves nothing half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from reelquant.runtime.machine.interrupt import SAID, Interruptible

# hashlib lets other threads run, and looks at no signal for minutes.
LONG = """
import hashlib, signal, sys
from pathlib import Path
from reelquant.runtime.files.atomic import partial_file, partial_folder, scratch_folder
from reelquant.runtime.machine.interrupt import Interruptible
signal.signal(signal.SIGINT, signal.default_int_handler)
place = Path(sys.argv[1])
with Interruptible(), partial_folder(place / "bundle") as folder, scratch_folder(place / "x", "scratch") as scratch:
    with partial_file(place / "clip.mp4") as clip:
        for path in (folder / "a", scratch / "b", clip):
            path.write_text("half")
        print("begun", flush=True)
        hashlib.pbkdf2_hmac("sha512", b"x", b"y", 500_000_000)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_one_long_step_is_no_reason_to_stay(number: signal.Signals, code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LONG, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        assert len(list(tmp_path.iterdir())) == 3
        time.sleep(0.5)  # until it is in the long step
        began = time.monotonic()
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == code and time.monotonic() - began < 10
    assert said == f"{SAID}\n" and list(tmp_path.iterdir()) == []


def test_handlers_and_threads_are_given_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    for _ in range(3):
        with Interruptible():
            assert any(thread.name == "interrupt" for thread in threading.enumerate())
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)] == before
    assert not any(thread.name == "interrupt" for thread in threading.enumerate())


def test_a_program_that_leaves_by_itself_is_let_go() -> None:
    with pytest.raises(SystemExit) as left, Interruptible():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert left.value.code == 143
