"""The loop over a clip's steps: noise in, latents out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.engines.session import Session
from reelquant.runtime.engines.sums import Sum, is_finite
from reelquant.runtime.errors import AccuracyError
from reelquant.runtime.sampling.denoiser import Conditioning, Denoiser
from reelquant.runtime.sampling.follower import Follower
from reelquant.runtime.sampling.schedule import Schedule
from reelquant.runtime.sampling.stepper import Stepper, Work

Floats = NDArray[np.float32]


def denoise(
    transformer: Session,
    conditioning: Conditioning,
    advance: Callable[[], None] = lambda: None,
    schedule: Schedule | None = None,
    work: Work | None = None,
) -> Floats:
    """Return the latents [latent_frames, channels, h, w] after all of the run's steps.

    With a ``schedule``, which must hold for the clip, only some steps are computed. ``work`` is told what was done.

    Raises:
        AccuracyError: the latents stopped being finite; the message names the step.
    """
    denoiser = Denoiser(transformer, conditioning.text, conditioning.image_latents, conditioning.fixed)
    stepper = Stepper(denoiser, conditioning, work or Work())
    step = Follower(stepper, schedule).step if schedule else stepper.step
    latents: Any = conditioning.latents
    steps = len(conditioning.run.timesteps)
    adder = transformer.adder(conditioning.latents.shape)
    if adder is not None:  # from here to the end they stay where the transformer computes
        conditioning.run.on_device(adder, latents.shape)
        latents = Sum.of(adder, latents)
    for i in range(steps):
        latents = step(i, latents)
        if not is_finite(latents):
            raise AccuracyError(
                f"the latents are not finite after step {i + 1} of {steps}: this precision overflows on this prompt; "
                "try another precision or engine, and report the bundle's manifest"
            )
        advance()
    if adder is None:
        return np.asarray(latents, np.float32)
    final: Floats = latents.host()
    adder.rest()
    return final
