"""Teacher forcing: hold a transformer against the one it was made from, each fed the same at every step.

The clips are the high-precision bundle's own. What the other transformer makes of a step never becomes the input of the
next, so that every step is judged by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reelquant.quant.calibration.data import CalibrationData
from reelquant.quant.calibration.watch import at_own_steps, sample_watched
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.engine import REFERENCE_ENGINE
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.session import Array, Feeds, Session
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.progress import SILENT, Progress
from reelquant.runtime.relative_l2 import l2
from reelquant.runtime.request import Request
from reelquant.runtime.sizes import Size


@dataclass(frozen=True)
class Step:
    """One run of the transformer in a clip: what it was fed, and its velocity float32 [2, …], unconditional half first."""

    clip: int
    feeds: Mapping[str, Array]
    velocity: Array

    @property
    def timestep(self) -> int:
        return int(self.feeds["timestep"][0])


@dataclass(frozen=True)
class Difference:
    """``rel_l2`` is ‖found − wanted‖ / ‖wanted‖, ``cosine`` that of the angle between them; NaN where one is not finite."""

    rel_l2: float
    cosine: float

    @classmethod
    def of(cls, found: Array, wanted: Array) -> Difference:
        a, b = (np.asarray(value, np.float64).reshape(-1) for value in (found, wanted))
        with np.errstate(invalid="ignore"):
            norms = l2(a), l2(b)
            cosine = float((a * b).sum() / max(norms[0] * norms[1], 1e-300))
            return cls(l2(a - b) / max(norms[1], 1e-300), cosine)

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.rel_l2) and np.isfinite(self.cosine))


@dataclass(frozen=True)
class Trial:
    """The clips on which a quantized transformer is tried: the last ``prompts`` of ``data`` (all, if it has fewer), ``steps`` steps each.

    ``size`` is theirs, without it the bundle's. ``engine`` is what will run the bundle: it is judged there.
    """

    data: str = "general"
    prompts: int = 2
    steps: int = 4
    seed: int = 1000
    size: Size | None = None
    engine: str = REFERENCE_ENGINE

    def requests(self, task: str) -> list[Request]:
        """Raises:
        BadInput: no prompts, or images.
        """
        held_out = CalibrationData.load(self.data).last(self.prompts, task)
        return held_out.requests(task, max(1, len(held_out.prompts)), self.seed, self.steps, self.size)

    def record(self, bundle: Bundle, progress: Progress = SILENT) -> list[Step]:
        """Every run of ``bundle``'s transformer in these clips (:func:`record_steps`), on the reference engine."""
        return record_steps(bundle, self.requests(bundle.manifest.task), REFERENCE_ENGINE, progress)


def record_steps(bundle: Bundle, requests: Sequence[Request], engine: str, progress: Progress = SILENT) -> list[Step]:
    """Every run of the transformer while ``bundle`` samples the clips of ``requests``; nothing is decoded.

    Raises:
        BadInput: a request cannot be met.
    """
    pipeline = Pipeline(bundle, EngineOptions(engine))  # which refuses before gigabytes are loaded
    session = pipeline.engine.open_component(bundle, "transformer", pipeline.options, "main")["main"]
    steps: list[Step] = []

    def keep(clip: int, feeds: Feeds, results: dict[str, Array]) -> None:
        kept = {name: np.array(feeds[name]) for name in session.inputs}
        steps.append(Step(clip, kept, np.array(results["velocity"])))

    sample_watched(pipeline, session, at_own_steps(requests, bundle.manifest.defaults), keep, progress, "record")
    return steps


def velocities(session: Session, steps: Iterable[Step], more: Feeds | None = None) -> Iterator[Array]:
    """What ``session`` makes of each step; ``more`` it is fed beside what the step has."""
    for step in steps:
        feeds = {**step.feeds, **(more or {})}
        yield session.run({name: feeds[name] for name in session.inputs})["velocity"]


def pooled_rel_l2(found: Iterable[Array], wanted: Iterable[Array]) -> float:
    """‖found − wanted‖ / ‖wanted‖ of all arrays together."""
    lost = norm = 0.0
    for one, other in zip(found, wanted, strict=True):
        lost += float(np.square(one - other, dtype=np.float64).sum())
        norm += float(np.square(other, dtype=np.float64).sum())
    return float(np.sqrt(lost / norm))
