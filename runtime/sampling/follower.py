"""A clip's steps as a schedule says, mended where its forecasts miss."""

from __future__ import annotations

from copy import copy
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.sampling.schedule import BOTH, CONDITIONAL, NOTHING, Forecaster, Schedule, miss
from reelquant.runtime.sampling.stepper import Stepper

Floats = NDArray[np.float32]
PATIENCE = 2  # stretches that are mended before the schedule is given up


class _Node(NamedTuple):
    """The last step of which both halves were computed: the latents before it, its velocity, and what was seen by then."""

    step: int
    latents: Floats
    velocity: Floats
    seen: Forecaster


class Follower:
    """Computes the steps that a schedule names and forecasts the others.

    At each step of which both halves are computed, the answer is held against its forecast. Where that misses by more than its bound,
    what was forecast since the last such step is taken again, every step of it computed, and the schedule goes on from there. The second
    time it does not: this clip is not of those that the schedule was made for, and every step that is left is computed.
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
        if self._stepper.work.repaired >= PATIENCE:
            return self._stepper.step(i, latents)
        schedule, kind = self._schedule, self._schedule.kinds[i]
        if kind == BOTH:
            velocity = self._stepper.velocity(i, latents)
            if self._missed(i, velocity, latents):
                latents = self._mended(i)
                if self._stepper.work.repaired >= PATIENCE:
                    return self._stepper.step(i, latents)
                velocity = self._stepper.velocity(i, latents)
            self._see(i, velocity, latents)
            self._node = _Node(i, latents, velocity, copy(self._seen))
            self._run.mark()
        elif kind != NOTHING:
            row = int(kind == CONDITIONAL)
            self._see_half(row, i, self._stepper.half(row, i, latents), latents)
        return self._run.toward(i, latents).to(self._seen.clean(schedule.coefficients[i], latents))

    def _missed(self, i: int, velocity: Floats, latents: Floats) -> bool:
        check, node = self._schedule.checks[i], self._node
        if not check or node is None or node.step == i - 1:  # nothing was forecast
            return False
        found = self._run.clean(i, self._stepper.guided(i, velocity), latents)
        return miss(found, self._seen.clean(check, latents)) > self._schedule.bounds[i]

    def _mended(self, i: int) -> Floats:
        """The latents before step ``i``, every step since the last node computed."""
        assert self._node is not None
        start, latents, velocity, self._seen = self._node
        self._run.rewind(start)
        self._stepper.work.repaired += 1
        for step in range(start, i):
            if step > start:
                velocity = self._stepper.velocity(step, latents)
                if (kind := self._schedule.kinds[step]) != NOTHING:
                    row = int(kind == CONDITIONAL)
                    self._see_half(row, step, velocity[row], latents)
            latents = self._run.step(step, self._stepper.guided(step, velocity), latents)
        return latents

    def _see(self, i: int, velocity: Floats, latents: Floats) -> None:
        for row in (0, 1):
            self._see_half(row, i, velocity[row], latents)

    def _see_half(self, row: int, i: int, velocity: Floats, latents: Floats) -> None:
        clean = self._run.clean(i, velocity, latents)
        self._seen.see(*((clean, None) if row else (None, clean)))
