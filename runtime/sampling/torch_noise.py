"""The noise that diffusers' pipelines would draw from a torch generator, drawn in their order."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.models.cogvideox.geometry import Geometry
from reelquant.runtime.request import ResolvedRequest

Floats = NDArray[np.float32]


def drawn_as_diffusers(resolved: ResolvedRequest, geometry: Geometry, generator: Any) -> ResolvedRequest:
    """``resolved`` with draws of a torch generator of the CPU: the image's or video's posterior, the first latents where
    the request has none, then what the scheduler draws at each step.
    """
    shape, request, image_noise = geometry.sampled_shape(resolved.size), resolved.request, None
    if resolved.image is not None:
        image_noise = _draw((1, shape[1], 1, *shape[2:]), generator)[:, :, 0]
    if resolved.video is not None:
        frames, channels, *sides = geometry.latent_shape(resolved.size)
        image_noise = _draw((1, channels, frames, *sides), generator)[0].swapaxes(0, 1)
    latents = request.latents if request.latents is not None else _draw((1, *shape), generator)[0]
    counts = resolved.scheduler.draws(resolved.steps, resolved.skip)
    steps = tuple([_draw((1, *shape), generator)[0] for _ in range(count)][-1] for count in counts)
    drawn = replace(request, latents=latents, image_noise=image_noise, step_noise=steps or None)
    return replace(resolved, request=drawn)


def _draw(shape: tuple[int, ...], generator: Any) -> Floats:
    """As ``randn_tensor`` draws it in float32. Who has a torch generator has imported torch: nothing here does."""
    torch: Any = sys.modules["torch"]
    noise: Floats = torch.randn(shape, generator=generator, dtype=torch.float32).numpy()
    return noise
