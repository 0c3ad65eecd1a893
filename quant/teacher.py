"""Teacher forcing: hold a transformer against the one it was made from, each fed the same at every step.

The clips are the high-precision bundle's own. What the other transformer makes of a step never becomes the input of the
next, so that every step is judged by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engine import Array, Feeds, Plan
from reelquant.runtime.graphs import open_graphs
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.progress import SILENT, Progress
from reelquant.runtime.request import Request


@dataclass(frozen=True)
class Step:
    """One run of the transformer in a clip: what it was fed, and its velocity float32 [2, …], unconditional half first."""

    prompt: int
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
        norms = float(np.linalg.norm(a)), float(np.linalg.norm(b))
        with np.errstate(invalid="ignore"):
            cosine = float(a @ b / max(norms[0] * norms[1], 1e-300))
            return cls(float(np.linalg.norm(a - b) / max(norms[1], 1e-300)), cosine)

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.rel_l2) and np.isfinite(self.cosine))


def record_steps(bundle: Bundle, requests: Sequence[Request], engine: str, progress: Progress = SILENT) -> list[Step]:
    """Every run of the transformer while ``bundle`` samples the clips of ``requests``; nothing is decoded.

    Raises:
        BadInput: a request cannot be met.
    """
    pipeline = Pipeline(bundle, engine)
    recorder = _Recorder(open_graphs(bundle, "transformer", engine, "main")["main"])
    pipeline.replace_transformer(recorder)
    with progress.stage("record", len(requests)) as advance:
        for number, request in enumerate(requests):
            recorder.prompt = number
            pipeline.sample(request, pipeline.settings(request))
            advance()
    return recorder.steps


def step_differences(plan: Plan, steps: Sequence[Step]) -> Iterator[Difference]:
    """What ``plan`` makes of each step, against what was recorded."""
    for step in steps:
        found = plan.run({name: step.feeds[name] for name in plan.inputs})["velocity"]
        yield Difference.of(found, step.velocity)


@dataclass
class _Recorder:
    """A transformer plan that keeps what it is fed and what it answers."""

    plan: Plan
    prompt: int = 0
    steps: list[Step] = field(default_factory=list)

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.plan.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.plan.outputs

    def run(self, feeds: Feeds) -> dict[str, Array]:
        kept = {name: np.array(feeds[name]) for name in self.plan.inputs}
        results = self.plan.run(feeds)
        self.steps.append(Step(self.prompt, kept, np.array(results["velocity"])))
        return results
