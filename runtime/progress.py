"""What long work shows a person (stage, step, time left) and what it records (seconds per stage)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from rich.progress import Progress as Bars


class Progress:
    """Bars on stderr, one per stage: ``with Progress() as p, p.stage("denoise", 50) as advance: advance()``.

    ``enabled`` None shows them only when stderr is a terminal, False never, True always. When not shown, or not
    entered, no bar is written. ``says`` is whether lines of :meth:`say` are. Never writes to stdout.
    """

    def __init__(self, enabled: bool | None = None, says: bool = False) -> None:
        self._enabled, self._says = enabled, says
        self._bars: Bars | None = None

    def __enter__(self) -> Self:
        shown = self._enabled
        if shown is None:
            shown = sys.stderr is not None and sys.stderr.isatty()
        if shown:
            self._bars = _bars(force=bool(self._enabled))
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def say(self, text: str) -> None:
        """Write a line on stderr: what begins now, or a warning that stops nothing."""
        if self._says:
            print(text, file=sys.stderr, flush=True)  # which Rich puts above its bars

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[], None]]:
        """Yield the function to call after each of ``total`` steps; None is a stage whose length is not known."""
        bars = self._bars
        if bars is None:
            yield _nothing
            return
        task = bars.add_task(name, total=total)
        try:
            yield lambda: bars.advance(task)
            if total is None:
                bars.update(task, total=1, completed=1)
        finally:
            bars.stop_task(task)


class Stopwatch:
    """Seconds per stage: ``with timer("decode"): ...`` adds to ``timer.seconds["decode"]``, even when it raises."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - start


SILENT: Final = Progress(enabled=False)


def _nothing() -> None:
    pass


def _bars(force: bool) -> Bars:
    # Rich is imported only where it shows something: it costs a tenth of a second.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    return Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True, force_terminal=True if force else None),
        redirect_stdout=False,  # else Rich would move what is printed on stdout to stderr
        # Rich forgets steps older than this, 30 s by default; steps on a CPU take longer and would never get an estimate.
        speed_estimate_period=24 * 3600,
    )
