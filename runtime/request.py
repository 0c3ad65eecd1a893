"""What a clip is made of: a user's request, and the same with every choice made and checked."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.bundle.manifest import Defaults
from reelquant.runtime.errors import BadInput
from reelquant.runtime.media.images import Picture, load_image
from reelquant.runtime.media.video import Video, load_video
from reelquant.runtime.models import model_of
from reelquant.runtime.models.cogvideox.geometry import Geometry
from reelquant.runtime.models.cogvideox.schedulers import Scheduler
from reelquant.runtime.sampling.schedule import EXACT, Schedule, load_schedule
from reelquant.runtime.sizes import Size

Floats = NDArray[np.float32]
N = TypeVar("N", int, float)
MAX_STEPS = 1000
STRENGTH = 0.8  # of a video, where the request does not say


@dataclass(frozen=True)
class Request:
    """One clip to make; whatever is None comes from the bundle's defaults.

    ``image`` is the first frame: a file's path, a Pillow image or uint8 RGB [h, w, 3] of any size. ``video`` is a clip to
    start from: a file's path, uint8 [frames, h, w, 3] or a list of pictures; its first frames are used. Both are resized.
    Of the steps, the share ``strength`` is done (0.8 without it): near 0 gives the video back, 1 keeps nothing of it.

    ``latents`` [latent_frames, channels, h, w], ``image_noise`` [1, channels, h, w] (for a video: [latent_frames, …]) and ``step_noise`` (one array like
    the latents for each step of a scheduler that adds noise) replace what the seed would draw, for those who compare
    with another implementation.

    ``timesteps`` are those that the model is run at, from the noisiest on, whole numbers; there are as many steps then. Each step
    goes to the next of them, by the scheduler's own formula, and the last to clean latents.

    ``schedule`` is the name of one of the bundle's schedules, a file of one, or a :class:`reelquant.runtime.sampling.schedule.Schedule`:
    fewer steps are computed. Without one, or with "exact", all are.
    """

    prompt: str
    image: Picture | None = None
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
    video: Video | None = None
    strength: float | None = None
    schedule: str | os.PathLike[str] | Schedule | None = None
    timesteps: Sequence[int] | None = None


@dataclass(frozen=True, eq=False)
class ResolvedRequest:
    """A request with every choice made and checked: all that a clip of one bundle depends on.

    The first ``skip`` of ``steps`` are left out, which of a video's is 1 - ``strength``. ``image`` uint8 [h, w, 3] and
    ``video`` uint8 [frames, h, w, 3] have the clip's size. ``request`` is what was asked for. ``schedule_note`` says why the schedule
    that was asked for does not hold for this clip, whose steps are then all computed, ``steps_note`` that steps that were asked for stand in
    the place of the bundle's own timesteps.
    """

    request: Request
    size: Size
    steps: int
    guidance: float
    seed: int
    scheduler: Scheduler
    skip: int = 0
    strength: float | None = None
    image: NDArray[np.uint8] | None = None
    video: NDArray[np.uint8] | None = None
    schedule: Schedule | None = None
    schedule_note: str | None = None
    steps_note: str | None = None

    @property
    def prompts(self) -> list[str]:
        """What is to be encoded, of a guided clip the negative prompt first."""
        asked = self.request
        return [asked.negative_prompt, asked.prompt] if self.guidance > 1 else [asked.prompt]

    @property
    def notes(self) -> list[str]:
        """What whoever asked should be told."""
        return [note for note in (self.steps_note, self.schedule_note) if note]


def resolve(request: Request, bundle: Bundle) -> ResolvedRequest:
    """Fill in what ``request`` leaves to ``bundle``, and check it all, before any work is done.

    Raises:
        BadInput: a choice is not possible; the message says what is.
    """
    manifest = bundle.manifest
    _check_types(request)
    model = model_of(manifest)
    size = model.checked(_size(request, manifest.defaults))
    timesteps, steps_note = _timesteps(request, manifest.defaults)
    scheduler = model.scheduler(request.scheduler, timesteps)
    steps, guidance, seed = _numbers(request, manifest.defaults, scheduler.listed)
    _check_source(request, manifest.task, bundle)
    strength = _strength(request, steps)
    skip = 0 if strength is None else steps - int(steps * strength)
    scheduler.startable(steps)
    _check_noise(request, size, model.geometry, steps - skip if scheduler.adds_noise else 0)
    image = None if request.image is None else load_image(request.image, size.height, size.width)
    video = None if request.video is None else load_video(request.video, size.frames, size.height, size.width)
    resolved = ResolvedRequest(
        request, size, steps, guidance, seed, scheduler, skip, strength, image, video, steps_note=steps_note
    )
    return _scheduled(resolved, bundle)


def _timesteps(request: Request, defaults: Defaults) -> tuple[Sequence[int] | None, str | None]:
    """Those of the clip, or None where the scheduler spaces its steps; and what to say where steps stand in the place of the bundle's.

    Raises:
        BadInput: the request has both, and another number of steps than of timesteps.
    """
    asked, steps = request.timesteps, request.steps
    if asked is not None:
        if steps is not None and int(steps) != len(asked):
            raise BadInput(f"{steps} steps, and {len(asked)} timesteps: each timestep is a step; leave out one of them")
        return asked, None
    if steps is None or defaults.timesteps is None:
        return defaults.timesteps, None
    own = ", ".join(map(str, defaults.timesteps))
    note = f"{steps} steps, evenly spaced, stand in the place of the timesteps that this bundle is made for: {own}"
    return None, f"{note}; without a number of steps, clips are made at those"


def _scheduled(resolved: ResolvedRequest, bundle: Bundle) -> ResolvedRequest:
    """With the schedule that was asked for, or the reason why it does not hold."""
    wanted = resolved.request.schedule
    if wanted is None or wanted == EXACT:
        return resolved
    schedule = wanted if isinstance(wanted, Schedule) else load_schedule(wanted, bundle)
    reason = schedule.mismatch(resolved, bundle)
    if reason is None:
        return replace(resolved, schedule=schedule)
    return replace(
        resolved,
        schedule_note=f"schedule {schedule.name} does not hold for this clip: {reason}; every step is computed",
    )


def _size(request: Request, defaults: Defaults) -> Size:
    # Of Python's own types, since numpy's cannot be written into the provenance.
    return Size(
        frames=int(_chosen(request.frames, defaults.frames)),
        height=int(_chosen(request.height, defaults.height)),
        width=int(_chosen(request.width, defaults.width)),
    )


def _numbers(request: Request, defaults: Defaults, timesteps: Sequence[int] | None) -> tuple[int, float, int]:
    """Steps, of which there is one for each of ``timesteps`` where those are given; guidance and seed."""
    steps = len(timesteps) if timesteps is not None else int(_chosen(request.steps, defaults.steps))
    guidance = float(_chosen(request.guidance, defaults.guidance))
    if not 1 <= steps <= MAX_STEPS:
        raise BadInput(f"{steps} steps is not from 1 to {MAX_STEPS}; {defaults.steps} is this bundle's default")
    check_guidance(guidance)
    seed = secrets.randbits(32) if request.seed is None else int(request.seed)
    if not 0 <= seed < 2**64:
        raise BadInput(f"seed {seed} is not from 0 to 2^64 - 1; choose another, or leave it out for a random one")
    return steps, guidance, seed


def check_guidance(guidance: float) -> None:
    """Raises:
    BadInput: no clip can be guided so.
    """
    if not (0 <= guidance <= 100):
        raise BadInput(f"guidance {guidance} is not from 0 to 100; 6 is usual, and 1 or less turns it off")


def _check_source(request: Request, task: str, bundle: Bundle) -> None:
    """Raises:
    BadInput: an image or a video that this task does not take, or none where it takes one.
    """
    if task == "i2v" and request.video is not None:
        raise BadInput(f"{bundle.path} makes clips from an image; a video needs a text-to-video bundle")
    if task == "i2v" and request.image is None:
        raise BadInput(f"{bundle.path} makes clips from an image; give one with --image FILE")
    if task == "t2v" and request.image is not None:
        raise BadInput(f"{bundle.path} makes clips from text alone; leave out --image, or use an i2v bundle")


def _strength(request: Request, steps: int) -> float | None:
    """How much of a video is made anew; None where there is none."""
    if request.video is None:
        if request.strength is not None:
            raise BadInput(
                "strength says how much of a video is made anew, and there is none; give one with --video FILE"
            )
        return None
    strength = float(_chosen(request.strength, STRENGTH))
    if not 0 <= strength <= 1 or int(steps * strength) < 1:
        raise BadInput(f"strength {strength} of {steps} steps is no step; it is from {1 / steps:g} to 1, usually 0.8")
    return strength


def _check_types(request: Request) -> None:
    """Raises:
    BadInput: a field is of a type that no value of it has.
    """
    for name in ("prompt", "negative_prompt", "scheduler"):
        value = getattr(request, name)
        if not isinstance(value, str) and (name, value) != ("scheduler", None):
            raise BadInput(f"{name} is a {type(value).__name__}, not a str")
    for names, kind, called in (
        (("seed", "steps", "frames", "height", "width"), Integral, "a whole number"),
        (("guidance", "strength"), Real, "a number"),
    ):
        for name in names:
            value = getattr(request, name)
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
                raise BadInput(f"{name} is {value!r}, not {called}")
    if request.timesteps is not None and (
        isinstance(request.timesteps, str) or not isinstance(request.timesteps, Sequence)
    ):
        raise BadInput(f"timesteps is a {type(request.timesteps).__name__}, not a list of whole numbers")


def _check_noise(request: Request, size: Size, geometry: Geometry, steps: int) -> None:
    """Check what replaces the seed's draws, where ``steps`` of them add noise; what has no use is not looked at.

    Raises:
        BadInput: it is not of finite numbers, of another shape, or for too few steps.
    """
    frames, *rest = geometry.latent_shape(size)
    whole = geometry.sampled_shape(size)
    if request.latents is not None:
        _check_array(request.latents, "latents", whole)
    if request.image_noise is not None and (request.image is not None or request.video is not None):
        _check_array(request.image_noise, "image_noise", (frames if request.video is not None else 1, *rest))
    if request.step_noise is not None and steps:
        if not isinstance(request.step_noise, tuple | list) or len(request.step_noise) < steps:
            raise BadInput(f"step_noise is no tuple of arrays for the {steps} steps that add noise; give one for each")
        for i, noise in enumerate(request.step_noise[:steps]):
            _check_array(noise, f"step_noise[{i}]", whole)


def _check_array(array: Any, name: str, shape: tuple[int, ...]) -> None:
    wanted = f"give finite float32 {list(shape)}"
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise BadInput(f"{name} is {array.dtype if isinstance(array, np.ndarray) else type(array).__name__}; {wanted}")
    if array.shape != shape:
        raise BadInput(f"{name} has shape {list(array.shape)}; {wanted}")
    if not np.isfinite(array).all():
        raise BadInput(f"{name} has NaN or infinite values; {wanted}")


def _chosen(wanted: N | None, default: N) -> N:
    return default if wanted is None else wanted
