"""A clip's steps as a schedule says, until its forecasts miss."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.engines.sums import Sum, computed
from reelquant.runtime.relative_l2 import relative_l2
from reelquant.runtime.sampling.schedule import BOTH, CONDITIONAL, NOTHING, Forecaster, Schedule
from reelquant.runtime.sampling.stepper import Stepper

Floats = NDArray[np.float32]


class _Node(NamedTuple):
    """The last step of which both halves were computed, the latents before it, and its velocity."""

    step: int
    latents: Floats
    velocity: Floats


class Follower:
    """Computes the steps that a schedule names and forecasts the others.

    At each step of which both halves are computed, the answer is held against its forecast. Where that misses by more than its bound,
    the clip is not of those that the schedule was made for: what was forecast since the last such step is taken again, with the same noise, and
    every step from there on is computed.
    """

    def __init__(self, stepper: Stepper, schedule: Schedule) -> None:
        self._stepper, self._schedule, self._run = stepper, schedule, stepper.run
        self._seen = Forecaster(schedule.order)
        self._node: _Node | None = None

    def step(self, i: int, latents: Floats) -> Floats:
        """The latents after step ``i``.

        Raises:
            ValueError: steps are not taken in order.
        """
        if self._stepper.work.given_up_at is not None:
            return self._stepper.step(i, latents)
        kind = self._schedule.kinds[i]
        if kind == BOTH:
            velocity = self._stepper.velocity(i, latents)
            if self._missed(i, velocity, latents):
                self._stepper.work.given_up_at = i
                return self._stepper.step(i, self._computed_again(i))
            for row in (0, 1):
                self._see(row, i, velocity[row], latents)
            self._node = _Node(i, latents, velocity)
            self._run.mark()
        elif kind != NOTHING:
            row = int(kind == CONDITIONAL)
            self._see(row, i, self._stepper.half(row, i, latents), latents)
        return self._run.toward(i, latents).to(self._seen.clean(self._schedule.coefficients[i], latents))

    def _missed(self, i: int, velocity: Floats, latents: Floats) -> bool:
        check, node = self._schedule.checks[i], self._node
        if not check or node is None or node.step == i - 1:  # nothing was forecast
            return False
        found = self._run.clean(i, self._stepper.guided(i, velocity), latents)
        return _off(found, self._seen.clean(check, latents)) > self._schedule.bounds[i]

    def _computed_again(self, i: int) -> Floats:
        """The latents before step ``i``, every step since the last node computed."""
        assert self._node is not None
        start, latents, velocity = self._node
        self._run.rewind(start)
        for step in range(start, i):
            if step > start:
                velocity = self._stepper.velocity(step, latents)
            latents = self._run.step(step, self._stepper.guided(step, velocity), latents)
        return latents

    def _see(self, row: int, i: int, velocity: Floats, latents: Floats) -> None:
        clean = computed(self._run.clean(i, velocity, latents))
        self._seen.see(*((clean, None) if row else (None, clean)))


def _off(found: Floats, forecast: Floats) -> float:
    """Relative L2 of a forecast from what was then computed, where both are."""
    if isinstance(found, Sum):
        return (found - forecast).l2 / max(found.l2, 1e-30)
    return relative_l2(found, forecast)
