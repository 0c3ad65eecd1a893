"""Schedules on trial: each is fitted on a few clips, the best of them on all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reelquant.quant.schedule.fit import GUARD, Fit, fit
from reelquant.quant.schedule.search import Costs, candidates
from reelquant.quant.schedule.trajectories import Trajectory
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.progress import SILENT, Progress
from reelquant.runtime.relative_l2 import relative_l2

FEW = 3  # clips of the first round
FINALISTS = 2


def best_fit(
    pipeline: Pipeline,
    clips: Sequence[Trajectory],
    costs: Costs,
    most: int,
    order: int,
    guard: float = GUARD,
    progress: Progress = SILENT,
) -> tuple[str, Fit]:
    """The kinds of a schedule of at most ``most`` rows, and their fit on ``clips``: those that lose least of them."""
    few, trials = clips[:FEW], candidates(costs, most)
    with progress.stage(f"try schedules of {most} forwards", len(trials) + FINALISTS) as advance:

        def fitted(kinds: str, some: Sequence[Trajectory]) -> Fit:
            found = fit(pipeline, some, kinds, order, guard)
            advance()
            return found

        if len(trials) > FINALISTS:
            losses = {kinds: loss(fitted(kinds, few), few) for kinds in trials}
            trials = sorted(trials, key=losses.__getitem__)[:FINALISTS]
        fits = {kinds: fitted(kinds, clips) for kinds in trials}
    return min(fits.items(), key=lambda item: loss(item[1], clips))


def loss(found: Fit, clips: Sequence[Trajectory]) -> float:
    """Of the final latents: half the mean and half the most of the logarithm of relative L2, so that no clip is left behind."""
    errors = [relative_l2(made, each.final) for made, each in zip(found.latents, clips, strict=True)]
    logs = np.log(np.maximum(errors, 1e-9))
    return float((logs.mean() + logs.max()) / 2)
