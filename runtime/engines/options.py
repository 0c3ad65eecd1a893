"""How graphs are opened and built: the two values that travel from a command line to an engine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from reelquant.runtime.bundle.trust import OWN, Trust
from reelquant.runtime.errors import BadInput
from reelquant.runtime.sizes import Size

CURRENT = "current"  # the GPU of this machine
AUTO = "auto"  # the engine that was the fastest here (reelquant tune)


@dataclass(frozen=True)
class EngineOptions:
    """Which engine runs a bundle, and how.

    ``engine`` None is the one that was the fastest here (:mod:`reelquant.runtime.tune.record`), or where nothing was tuned the one
    that the bundle was built for, where it runs here; "auto" is the same, and says so where nothing was tuned. ``threads`` are CPU
    threads, None the engine's choice. ``batch`` is how many halves of guidance a run takes: 2, or 1 after the other; None is 2.
    ``device`` is a GPU's number as in ``nvidia-smi``, for engines that compute on one. ``trust`` says whose compiled engines are
    loaded.

    Raises:
        BadInput: ``threads``, ``batch`` or ``device`` is no such number.
    """

    engine: str | None = None
    threads: int | None = None
    device: int = 0
    trust: Trust = OWN
    batch: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and (not _is_whole(self.threads) or self.threads < 1):
            raise BadInput(
                f"threads is {self.threads!r}; give a number of CPU threads, or None for the engine's choice"
            )
        if self.batch not in (None, 1, 2) or isinstance(self.batch, bool):
            raise BadInput(f"batch is {self.batch!r}; give 2 for both halves of guidance at once, or 1")
        if not _is_whole(self.device) or self.device < 0:
            raise BadInput(f"device is {self.device!r}; give a GPU's number as in nvidia-smi, from 0")

    def cpu_threads(self) -> int | None:
        """``threads``, or what the environment variable REELQUANT_THREADS says; None leaves it to the engine.

        Raises:
            BadInput: that is no number of threads.
        """
        text = os.environ.get("REELQUANT_THREADS", "")
        if self.threads is not None or not text:
            return self.threads
        if not text.isdecimal() or int(text) < 1:
            raise BadInput(f"REELQUANT_THREADS is {text!r}; give a number of CPU threads, or unset it")
        return int(text)


@dataclass(frozen=True)
class BuildSpec:
    """What an engine that compiles ahead builds; one that compiles when it loads takes the defaults alone.

    ``sizes`` are the clips it builds for, without any the bundle's own size; each has a static engine, or all of them one
    ``dynamic`` one. With ``tiled``, a VAE is built for the tiles of large frames. ``gpus`` are names such as "sm89", or
    "current". ``level`` is TensorRT's builder optimization level, 0 to 5. ``cache`` is a folder of engines built before,
    None the user's.
    """

    sizes: tuple[Size, ...] = ()
    dynamic: bool = False
    tiled: bool = False
    gpus: tuple[str, ...] = (CURRENT,)
    level: int = 3
    threads: int | None = None
    cache: Path | None = None


def parse_gpus(text: str) -> tuple[str, ...]:
    """``"sm120, SM89"`` → ("sm89", "sm120"): each once, sorted; whether they exist is the engine's to say."""
    names = {name.strip().lower() for name in text.split(",")} - {""}
    return tuple(sorted(names, key=lambda name: (len(name), name)))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
