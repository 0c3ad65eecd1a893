"""What a clip is made of: a user's request, and the same with every choice made and checked."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.errors import BadInput
from reelquant.runtime.positions import check_positions
from reelquant.runtime.sizes import Size, checked

Floats = NDArray[np.float32]
N = TypeVar("N", int, float)
MAX_STEPS = 1000


@dataclass(frozen=True)
class Request:
    """One clip to make; whatever is None comes from the bundle's defaults.

    ``video`` is a clip to start from, a file or uint8 [frames, h, w, 3]; its first frames are used, resized. Of the
    steps, the share ``strength`` is done: near 0 gives the clip back, 1 keeps nothing of it.

    ``latents`` [latent_frames, channels, h, w], ``image_noise`` [1, channels, h, w] (for a video: [latent_frames, …]) and ``step_noise`` (one array like
    the latents for each step of a scheduler that adds noise) replace what the seed would draw, for those who compare
    with another implementation.
    """

    prompt: str
    image: Path | NDArray[np.uint8] | None = None
    negative_prompt: str = ""
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    scheduler: str | None = None
    latents: Floats | None = field(default=None, repr=False)
    image_noise: Floats | None = field(default=None, repr=False)
    step_noise: tuple[Floats, ...] | None = field(default=None, repr=False)
    video: Path | NDArray[np.uint8] | None = None
    strength: float = 0.8


@dataclass(frozen=True)
class Settings:
    """A request with every choice made and checked; the first ``skip`` of ``steps`` are left out."""

    size: Size
    steps: int
    guidance: float
    seed: int
    skip: int = 0


def settle(request: Request, bundle: Bundle) -> Settings:
    """Fill in what ``request`` leaves to ``bundle``, and check it all, before any work is done.

    Raises:
        BadInput: a choice is not possible; the message says what is.
    """
    manifest = bundle.manifest
    defaults = manifest.defaults
    size = Size(
        frames=_chosen(request.frames, defaults.frames),
        height=_chosen(request.height, defaults.height),
        width=_chosen(request.width, defaults.width),
    )
    steps = _chosen(request.steps, defaults.steps)
    guidance = _chosen(request.guidance, defaults.guidance)
    if not 1 <= steps <= MAX_STEPS:
        raise BadInput(f"{steps} steps is not from 1 to {MAX_STEPS}; {defaults.steps} is this bundle's default")
    if not (0 <= guidance <= 100):
        raise BadInput(f"guidance {guidance} is not from 0 to 100; 6 is usual, and 1 or less turns it off")
    if manifest.task == "i2v" and request.video is not None:
        raise BadInput(f"{bundle.path} makes clips from an image; a video needs a text-to-video bundle")
    if manifest.task == "i2v" and request.image is None:
        raise BadInput(f"{bundle.path} makes clips from an image; give one with --image FILE")
    if manifest.task == "t2v" and request.image is not None:
        raise BadInput(f"{bundle.path} makes clips from text alone; leave out --image, or use an i2v bundle")
    skip = 0
    if request.video is not None:
        if not 0 <= request.strength <= 1 or int(steps * request.strength) < 1:
            raise BadInput(
                f"strength {request.strength} of {steps} steps is no step; it is from {1 / steps:g} to 1, usually 0.8"
            )
        skip = steps - int(steps * request.strength)
    seed = secrets.randbits(32) if request.seed is None else request.seed
    if not 0 <= seed < 2**64:
        raise BadInput(f"seed {seed} is not from 0 to 2^64 - 1; choose another, or leave it out for a random one")
    size = checked(size, manifest.geometry)
    check_positions(manifest.transformer, *size.latent_shape(manifest.geometry)[2:])
    return Settings(size, steps, guidance, seed, skip)


def _chosen(wanted: N | None, default: N) -> N:
    return default if wanted is None else wanted
