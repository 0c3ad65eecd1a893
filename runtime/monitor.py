"""Follow the making of one clip: bars for a person, seconds per stage for a record, and a word with whoever may stop it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from reelquant.runtime.progress import SILENT, Progress, Stopwatch

# Stage ("text", "encode", "denoise", "decode"), how much of it is done, of how much.
OnStep = Callable[[str, int, int], object]


class Monitor:
    """One clip's. ``on_step`` is called after each step of each stage, in the thread that works; what it raises ends the clip
    (:class:`reelquant.runtime.errors.Cancelled`).
    """

    def __init__(self, progress: Progress = SILENT, on_step: OnStep | None = None) -> None:
        self._progress, self._on_step, self._timer = progress, on_step, Stopwatch()

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds per stage so far; "load" is opening networks."""
        return dict(self._timer.seconds)

    @contextmanager
    def loading(self) -> Iterator[None]:
        with self._timer("load"):
            yield

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[], None]]:
        """Yield the function to call after each of ``total`` steps."""
        done = 0
        with self._timer(name), self._progress.stage(name, total) as advance:

            def step() -> None:
                nonlocal done
                done += 1
                advance()
                if self._on_step is not None:
                    self._on_step(name, done, total)

            yield step
