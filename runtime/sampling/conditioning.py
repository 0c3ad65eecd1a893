"""What a clip's denoising starts from: its noise, and what of its image, video and size the transformer is told."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.media.images import to_model
from reelquant.runtime.models import model_of
from reelquant.runtime.monitor import Monitor
from reelquant.runtime.request import ResolvedRequest
from reelquant.runtime.sampling.denoiser import Conditioning
from reelquant.runtime.sampling.networks import Networks

Floats = NDArray[np.float32]
Shape = tuple[int, ...]


def condition(
    resolved: ResolvedRequest, text: Floats, bundle: Bundle, networks: Networks, monitor: Monitor
) -> Conditioning:
    """Draw the noise and encode the image or video; ``text`` is float32 [2, text_tokens, text_width], or [1, …].

    The seed's draws come in one order, whatever of them the request hands in: latents, image or video, steps.
    """
    model, request = model_of(bundle.manifest), resolved.request
    scheduler, rng = resolved.scheduler, np.random.default_rng(resolved.seed)
    shape = model.geometry.sampled_shape(resolved.size)
    latents = _drawn(rng, shape, request.latents)
    image_latents = start = None
    if resolved.image is not None:
        noise = _drawn(rng, (1, *shape[1:]), request.image_noise)
        encoder = networks.vae_encoder(monitor)
        with monitor.stage("encode", 1) as advance:
            image_latents = np.zeros(shape, np.float32)
            image_latents[:1] = encoder.encode_image(to_model(resolved.image[None]), noise)
            advance()
    if resolved.video is not None:
        noise = _drawn(rng, model.geometry.latent_shape(resolved.size), request.image_noise)
        encoder = networks.vae_encoder(monitor)
        with monitor.stage("encode", 1) as advance:
            start = encoder.encode(to_model(resolved.video), noise)
            advance()
    run = scheduler.begin(resolved.steps, rng, _in_turn(request.step_noise), resolved.skip)
    if start is not None:
        # CogVideoX 1.5 takes frames in pairs: what is missing goes before the clip and is cut off again.
        start = np.concatenate([start[: shape[0] - len(start)], start])
        latents = scheduler.add_noise(start, latents, int(run.timesteps[0]))
    guidance = model.guidance(resolved.guidance, bundle.manifest.defaults.dynamic_guidance, len(run.timesteps))
    latents = latents * scheduler.init_noise_sigma
    return Conditioning(latents, text, guidance, run, image_latents, model.constants(bundle, shape))


def _in_turn(arrays: tuple[Floats, ...] | None) -> Callable[[Shape], Floats] | None:
    if arrays is None:
        return None
    left = iter(arrays)
    return lambda shape: np.ascontiguousarray(next(left), np.float32)


def _drawn(rng: np.random.Generator, shape: Shape, given: Floats | None) -> Floats:
    """``given`` or else standard normal noise; drawn in either case, so that what is drawn next is the same."""
    drawn = rng.standard_normal(shape, dtype=np.float32)
    return drawn if given is None else np.ascontiguousarray(given, np.float32)
