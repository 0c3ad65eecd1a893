"""The steps of a clip, each computed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.models.cogvideox.guidance import combine
from reelquant.runtime.sampling.denoiser import Conditioning, Denoiser

Floats = NDArray[np.float32]


@dataclass
class Work:
    """What the denoising of a clip took: ``forwards`` rows of steps, and at which step a schedule was given up, if it was."""

    forwards: int = 0
    given_up_at: int | None = None


class Stepper:
    """Takes the steps of a clip, each computed."""

    def __init__(self, denoiser: Denoiser, conditioning: Conditioning, work: Work) -> None:
        self.denoiser, self.run, self.work = denoiser, conditioning.run, work
        self._guidance = conditioning.guidance

    def step(self, i: int, latents: Floats) -> Floats:
        """The latents after step ``i``."""
        return self.run.step(i, self.guided(i, self.velocity(i, latents)), latents)

    def velocity(self, i: int, latents: Floats) -> Floats:
        """As :meth:`Denoiser.velocity`."""
        velocity: Floats = self.denoiser.velocity(latents, int(self.run.timesteps[i]))
        self.work.forwards += len(velocity)
        return velocity

    def half(self, row: int, i: int, latents: Floats) -> Floats:
        """As :meth:`Denoiser.half`."""
        self.work.forwards += 1
        velocity: Floats = self.denoiser.half(row, latents, int(self.run.timesteps[i]))
        return velocity

    def scale(self, i: int) -> float:
        """Of guidance at step ``i``."""
        return self._guidance(int(self.run.timesteps[i]))

    def guided(self, i: int, velocity: Floats) -> Floats:
        """The two halves together, or the one there is."""
        return velocity[0] if len(velocity) == 1 else combine(velocity[0], velocity[1], self.scale(i))
