"""Coefficients of a schedule's forecasts, by least squares on the states that the schedule itself comes to.

Step by step all clips are sampled as the schedule says. At each step the coefficients are those that take the clips nearest to where
their whole sampling was after it: so they also mend what earlier forecasts missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reelquant.quant.schedule.trajectories import Floats, Trajectory, flat
from reelquant.runtime.models.cogvideox.schedulers import Run
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.relative_l2 import relative_l2
from reelquant.runtime.sampling.denoiser import Denoiser
from reelquant.runtime.sampling.schedule import BOTH, CONDITIONAL, NOTHING, Forecaster, weighted

RIDGE = 1e-5  # of each array's own energy
GUARD = 3.0  # how many times the most of the fitted clips a forecast may miss


@dataclass(frozen=True)
class Fit:
    """As the fields of :class:`reelquant.runtime.sampling.schedule.Schedule`; ``latents`` are what the clips came to."""

    coefficients: tuple[tuple[float, ...], ...]
    checks: tuple[tuple[float, ...], ...]
    bounds: tuple[float, ...]
    latents: tuple[Floats, ...]


@dataclass
class _Clip:
    trajectory: Trajectory
    denoiser: Denoiser
    run: Run
    seen: Forecaster
    latents: Floats

    def scale(self, i: int) -> float:
        """Of guidance."""
        return self.trajectory.conditioning.guidance(int(self.run.timesteps[i]))

    def compute(self, i: int, kind: str) -> None:
        """See what step ``i`` computes."""
        timestep = int(self.run.timesteps[i])
        if kind == BOTH:
            velocity = self.denoiser.velocity(self.latents, timestep)
            unconditional, conditional = (self.run.clean(i, each, self.latents) for each in velocity)
            self.seen.see(conditional, unconditional)
            return
        row = int(kind == CONDITIONAL)
        clean = self.run.clean(i, self.denoiser.half(row, self.latents, timestep), self.latents)
        self.seen.see(*((clean, None) if row else (None, clean)))


def fit(pipeline: Pipeline, trajectories: Sequence[Trajectory], kinds: str, order: int, guard: float = GUARD) -> Fit:
    """Sample the clips as ``kinds`` says, and find what each step's forecast is put together from. Bounds are ``guard`` times what the
    forecasts of these clips miss by at most.
    """
    clips = [
        _Clip(each, each.denoiser(pipeline), each.run(), Forecaster(order), each.conditioning.latents)
        for each in trajectories
    ]
    coefficients, checks, bounds = [], [], []
    for i, kind in enumerate(kinds):
        check: tuple[float, ...] = ()
        bound = 0.0
        if kind != NOTHING:
            before = [clip.seen.arrays(clip.latents) for clip in clips]
            held = clips[0].seen.held(clips[0].scale(i))
            for clip in clips:
                clip.compute(i, kind)
            if kind == BOTH and i > 0:
                found = [clip.seen.clean(clip.seen.held(clip.scale(i)), clip.latents) for clip in clips]
                check = _solved(before, found, held)
                forecasts = [weighted(check, arrays) for arrays in before]
                bound = guard * max(relative_l2(*pair) for pair in zip(found, forecasts, strict=True))
        checks.append(check)
        bounds.append(bound)
        moves = [clip.run.toward(i, clip.latents) for clip in clips]
        wanted = [
            (clip.trajectory.states[i + 1] - move.rest) / move.gain for clip, move in zip(clips, moves, strict=True)
        ]
        held = clips[0].seen.held(clips[0].scale(i))
        coefficients.append(_solved([clip.seen.arrays(clip.latents) for clip in clips], wanted, held))
        for clip, move in zip(clips, moves, strict=True):
            clip.latents = move.to(clip.seen.clean(coefficients[-1], clip.latents))
    return Fit(tuple(coefficients), tuple(checks), tuple(bounds), tuple(clip.latents for clip in clips))


def _solved(arrays: Sequence[Sequence[Floats]], wanted: Sequence[Floats], prior: Sequence[float]) -> tuple[float, ...]:
    """What of each array makes the wanted ones of all clips, in least squares; ridge regression towards ``prior``."""
    count = len(prior)
    gram, products = np.zeros((count, count)), np.zeros(count)
    for clip, target in zip(arrays, wanted, strict=True):
        matrix = np.stack(list(flat(clip)))
        gram += matrix @ matrix.T
        products += matrix @ np.asarray(target, np.float64).reshape(-1)
    energy = np.diag(gram)
    ridge = np.diag(RIDGE * energy + 1e-9 * energy.max())
    solved: NDArray[np.float64] = np.asarray(prior) + np.linalg.solve(gram + ridge, products - gram @ prior)
    return tuple(map(float, solved))
