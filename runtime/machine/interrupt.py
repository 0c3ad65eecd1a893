"""Leaving when told to: Ctrl-C, a supervisor's SIGTERM, a closed terminal's SIGHUP.

Python looks at signals between two steps of its own, and an engine's single run can take many seconds. So a thread is woken
by the signal itself: where the program has not left by then through the ``finally`` blocks that remove partial files, the
thread removes them and ends the process.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from reelquant.runtime.files.hidden import remove_unfinished

SAID = "Interrupted; nothing was left half-written."
GRACE = 1.5  # seconds for the program to leave by itself
_STOP = b"\0"  # no signal has this number


class Interruptible:
    """``with Interruptible():`` in the main thread; signals' handlers are what they were before afterwards."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._left = threading.Event()
        self._wakeup: tuple[int, int, int] | None = None

    def __enter__(self) -> Self:
        for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # nohup means it
                self._before[number] = signal.signal(number, _leave)
        if sys.platform != "win32":
            read, write = os.pipe()
            os.set_blocking(write, False)
            self._wakeup = (read, write, signal.set_wakeup_fd(write, warn_on_full_buffer=False))
            self._thread = threading.Thread(target=self._watch, args=(read,), name="interrupt", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._left.set()
        if self._wakeup is not None:
            read, write, before = self._wakeup
            signal.set_wakeup_fd(before, warn_on_full_buffer=False)
            os.write(write, _STOP)
            self._thread.join()
            os.close(read)
            os.close(write)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _watch(self, read: int) -> None:
        deadly = {int(signal.SIGINT), *map(int, self._before)}
        while (number := os.read(read, 1)) != _STOP:
            if number[0] not in deadly or signal.getsignal(number[0]) in (signal.SIG_IGN, None):
                continue
            if self._left.wait(GRACE):
                return
            remove_unfinished()
            shown = b"\x1b[?25h\n" if os.isatty(2) else b""  # the cursor, which bars hide
            os.write(2, shown + f"{SAID}\n".encode())
            os._exit(130 if number[0] == signal.SIGINT else 128 + number[0])


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """Leave through the ``finally`` blocks that remove partial files."""
    sys.exit(128 + number)
