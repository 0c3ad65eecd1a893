"""The denoising loop: noise in, latents out, one transformer run per step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.engines.session import Session
from reelquant.runtime.errors import AccuracyError
from reelquant.runtime.guidance import combine, dynamic_scale
from reelquant.runtime.schedulers import Run

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Condition:
    """What a clip is conditioned on.

    ``text`` is float32 [2, text_tokens, text_width], unconditional first, or [1, …] when guidance is off;
    ``image_latents`` is float32 [latent_frames, channels, h, w] for image-to-video; ``fixed`` are the graph's other
    inputs, the same at every step: positions, and what a variant has besides.
    """

    text: Floats
    guidance: float
    dynamic_guidance: bool = False
    image_latents: Floats | None = None
    fixed: Mapping[str, Floats] = field(default_factory=dict)


def denoise(
    transformer: Session,
    run: Run,
    latents: Floats,
    condition: Condition,
    advance: Callable[[], None] = lambda: None,
) -> Floats:
    """Return the latents [latent_frames, channels, h, w] after all of ``run``'s steps.

    Conditional and unconditional prediction are one batch of two.

    Raises:
        AccuracyError: the latents stopped being finite; the message names the step.
    """
    batch = len(condition.text)
    feeds: dict[str, Any] = {"text": condition.text, **condition.fixed}
    if condition.image_latents is not None:
        feeds["image_latents"] = np.repeat(condition.image_latents[None], batch, 0)
    steps = len(run.timesteps)
    for i, timestep in enumerate(run.timesteps):
        feeds["latents"] = np.repeat(latents[None], batch, 0)
        feeds["timestep"] = np.full(batch, timestep, np.int64)
        velocity = transformer.run(feeds)["velocity"].astype(np.float32, copy=False)
        if batch == 2:
            scale = condition.guidance
            if condition.dynamic_guidance:
                scale = dynamic_scale(scale, int(timestep), steps)
            guided = combine(velocity[0], velocity[1], scale)
        else:
            guided = velocity[0]
        latents = run.step(i, guided, latents)
        if not np.isfinite(latents).all():
            raise AccuracyError(
                f"the latents are not finite after step {i + 1} of {steps}: this precision overflows on this prompt; "
                "try another precision or engine, and report the bundle's manifest"
            )
        advance()
    return latents
