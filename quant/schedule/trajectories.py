"""Whole samplings of a bundle's clips, kept step by step: what a schedule is searched and fitted on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.models.cogvideox.guidance import combine
from reelquant.runtime.models.cogvideox.schedulers import Run
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.progress import SILENT, Progress
from reelquant.runtime.request import Request, ResolvedRequest
from reelquant.runtime.sampling.denoiser import Conditioning, Denoiser

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One clip of T steps: ``states`` [T + 1, …] before each step and after the last; of each step the clean latents by the
    two halves of guidance, ``conditional`` and ``unconditional`` [T, …]; ``noise`` [T, …] of a scheduler that adds some. All float32,
    mapped from files.
    """

    resolved: ResolvedRequest
    conditioning: Conditioning
    states: Floats
    conditional: Floats
    unconditional: Floats
    noise: Floats

    @property
    def final(self) -> Floats:
        last: Floats = self.states[-1]
        return last

    def guided(self) -> Iterator[Floats]:
        """The clean latents of each step, both halves together."""
        for i, timestep in enumerate(map(int, self.run().timesteps)):
            yield combine(self.unconditional[i], self.conditional[i], self.conditioning.guidance(timestep))

    def run(self) -> Run:
        """The same way once more, with the same noise."""
        left = iter(self.noise)
        rng = np.random.default_rng(0)  # of which nothing is drawn
        return self.resolved.scheduler.begin(self.resolved.steps, rng, lambda _: next(left))

    def denoiser(self, pipeline: Pipeline) -> Denoiser:
        made = self.conditioning
        return Denoiser(pipeline.transformer(), made.text, made.image_latents, made.fixed)


def record(
    pipeline: Pipeline, requests: Sequence[Request], folder: Path, progress: Progress = SILENT
) -> list[Trajectory]:
    """Sample the clips of ``requests``, every step of them computed; arrays lie in ``folder``.

    Raises:
        BadInput: a request cannot be met, or its guidance is off.
    """
    steps = sum(pipeline.resolve(request).steps for request in requests)
    with progress.stage("record", steps) as advance:
        found = []
        for number, request in enumerate(requests):
            found.append(_recorded(pipeline, request, folder / str(number)))
            for _ in range(found[-1].resolved.steps):
                advance()
    return found


def _recorded(pipeline: Pipeline, request: Request, folder: Path) -> Trajectory:
    folder.mkdir(parents=True)
    resolved = pipeline.resolve(request)
    shape = pipeline.model.geometry.sampled_shape(resolved.size)
    steps = resolved.steps

    def array(name: str, count: int) -> Floats:
        made: Floats = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (count, *shape))
        return made

    noise = array("noise", steps if resolved.scheduler.adds_noise else 0)
    rng = np.random.default_rng([resolved.seed, 1])
    for each in noise:
        each[...] = rng.standard_normal(shape, dtype=np.float32)
    resolved = replace(resolved, request=replace(resolved.request, step_noise=tuple(noise)))
    conditioning = pipeline.prepare(resolved)
    states, conditional, unconditional = (
        array("states", steps + 1),
        array("conditional", steps),
        array("unconditional", steps),
    )
    made = Trajectory(resolved, conditioning, states, conditional, unconditional, noise)
    denoiser, run, latents = made.denoiser(pipeline), made.run(), conditioning.latents
    for i, timestep in enumerate(map(int, run.timesteps)):
        states[i] = latents
        velocity = denoiser.velocity(latents, timestep)
        scale = conditioning.guidance(timestep)
        conditional[i] = run.clean(i, velocity[1], latents)
        unconditional[i] = run.clean(i, velocity[0], latents)
        latents = run.step(i, combine(velocity[0], velocity[1], scale), latents)
    states[steps] = latents
    return made


def flat(arrays: Iterable[Floats]) -> Iterator[NDArray[np.float64]]:
    """Each as one float64 vector."""
    for array in arrays:
        yield np.asarray(array, np.float64).reshape(-1)
