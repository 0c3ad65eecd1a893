"""Make a bundle's own clips with its transformer watched: what calibration and teacher forcing are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reelquant.runtime.engine import Array, Feeds, Plan
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.progress import Progress
from reelquant.runtime.request import Request

# Of one run: the clip's number, what the transformer was fed, and what it answered, of which it may take things out.
See = Callable[[int, Feeds, dict[str, Array]], None]


def sample_watched(
    pipeline: Pipeline, transformer: Plan, requests: Sequence[Request], see: See, progress: Progress, stage: str
) -> None:
    """Sample the clips of ``requests`` with ``transformer`` in ``pipeline``, and show every run to ``see``; decode none.

    Raises:
        BadInput: a request cannot be met.
    """
    watched = _Watched(transformer, see)
    pipeline.replace_transformer(watched)
    with progress.stage(stage, len(requests)) as advance:
        for number, request in enumerate(requests):
            watched.clip = number
            pipeline.sample(request, pipeline.settings(request))
            advance()


@dataclass
class _Watched:
    plan: Plan
    see: See
    clip: int = 0

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.plan.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.plan.outputs

    def run(self, feeds: Feeds) -> dict[str, Array]:
        results = self.plan.run(feeds)
        self.see(self.clip, feeds, results)
        return results
