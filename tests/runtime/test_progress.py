from __future__ import annotations

import os
import pty
import subprocess
import sys
import time

import pytest

from reelquant.runtime.progress import SILENT, Progress, Stopwatch

WORK = """
import sys, time
from reelquant.runtime.progress import Progress
with Progress({enabled}) as progress:
    with progress.stage("denoise", total=50) as advance:
        for i in range(50):
            if i == 25:
                print("result on stdout")
            advance()
    with progress.stage("decode") as advance:
        advance()
print("rich" in sys.modules)
"""


def on_a_terminal(code: str) -> tuple[str, str, int]:
    """What ``code`` writes to a terminal that is its stderr, what it writes to stdout, and its exit status."""
    main, side = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=side, env=env) as process:
        os.close(side)
        shown = b""
        while True:
            try:
                data = os.read(main, 4096)
            except OSError:  # how Linux ends a terminal
                break
            if not data:
                break
            shown += data
        os.close(main)
        assert process.stdout is not None
        return shown.decode(), process.stdout.read().decode(), process.wait()


def test_terminal_shows_stage_step_and_time_left() -> None:
    shown, printed, status = on_a_terminal(WORK.format(enabled="None"))
    assert "denoise" in shown and "50/50" in shown and "decode" in shown and "left" in shown
    assert printed == "result on stdout\nTrue\n" and status == 0
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor is given back


def test_slow_steps_get_an_estimate() -> None:
    code = """
import time
from rich import progress as rich_progress
from reelquant.runtime.progress import Progress
clock = 0.0
with Progress() as progress:
    progress._bars.get_time = lambda: clock
    with progress.stage("denoise", total=50) as advance:
        for _ in range(3):
            clock += 60
            advance()
        progress._bars.refresh()
"""
    shown, _, status = on_a_terminal(code)
    assert status == 0 and "3/50" in shown and "0:47:00" in shown


def test_quiet_terminal_shows_nothing() -> None:
    assert on_a_terminal(WORK.format(enabled="False")) == ("", "result on stdout\nFalse\n", 0)


def test_pipe_shows_nothing_and_never_imports_rich() -> None:
    script = [sys.executable, "-c", WORK.format(enabled="")]
    ran = subprocess.run(script, check=False, capture_output=True, text=True)
    assert (ran.stderr, ran.stdout, ran.returncode) == ("", "result on stdout\nFalse\n", 0)


def test_error_and_interrupt_pass_through_and_give_the_cursor_back() -> None:
    code = "from reelquant.runtime.progress import Progress\n" \
           "with Progress() as p, p.stage('denoise', 9) as advance:\n    advance()\n    raise {}"  # fmt: skip
    for error in ("KeyboardInterrupt", "ValueError('a bug')"):
        shown, _, status = on_a_terminal(code.format(error))
        assert "1/9" in shown and shown.count("\x1b[?25h") == 1 and error.split("(")[0] in shown and status != 0


def test_silent_works_as_a_default_argument(capfd: pytest.CaptureFixture[str]) -> None:
    def work(progress: Progress = SILENT) -> int:
        with progress.stage("one", total=2) as advance:
            advance()
        with progress.stage("two") as advance:
            advance()
        return 2

    assert work() == 2
    with SILENT as entered:
        assert work(entered) == 2
    assert capfd.readouterr() == ("", "")


def test_stderr_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with Progress() as progress, progress.stage("denoise", 1) as advance:
        advance()


def test_stopwatch_adds_up_per_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 10.5, 20.0, 21.0, 30.0, 34.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    timer = Stopwatch()
    with timer("encode"):
        pass
    with timer("decode"):
        pass
    with pytest.raises(ValueError, match="a bug"), timer("encode"):
        raise ValueError("a bug")
    assert timer.seconds == {"encode": 4.5, "decode": 1.0}
