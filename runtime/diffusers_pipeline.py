"""A pipeline with the face of diffusers' ``CogVideoXPipeline``: a script written for that one changes one line.

    pipe = ReelquantPipeline.from_pretrained("build/demo-t2v-int8")
    frames = pipe(prompt="a red circle moves left", num_inference_steps=20, generator=generator).frames[0]

What this class lacks is refused by Python itself; what makes no sense without torch (``to``, offloading) changes nothing.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from reelquant.runtime.errors import BadInput
from reelquant.runtime.media.images import Picture
from reelquant.runtime.media.video import Video
from reelquant.runtime.models.cogvideox.schedulers import NAMES
from reelquant.runtime.monitor import Monitor, OnStep
from reelquant.runtime.pipeline import Pipeline, load_pipeline
from reelquant.runtime.request import Request, ResolvedRequest
from reelquant.runtime.sampling.torch_noise import drawn_as_diffusers

Callback = Callable[[Any, int, int, dict[str, Any]], Any]


class ReelquantPipelineOutput(NamedTuple):
    """``frames``: a list of clips; each is a list of Pillow images, or float32 [frames, height, width, 3] in 0…1 ("np"), or
    latents float32 [latent_frames, channels, h, w] ("latent").
    """

    frames: list[Any]


@dataclass
class _Vae:
    """What scripts call on ``pipe.vae``."""

    pipe: ReelquantPipeline

    def enable_tiling(self) -> None:
        """Decode and encode large frames in tiles from now on."""
        self.pipe._reopen(tiled=True)

    def disable_tiling(self) -> None:
        self.pipe._reopen(tiled=False)

    def enable_slicing(self) -> None:
        """Nothing changes: clips are decoded one by one, and each as a stream."""


class ReelquantPipeline:
    """One bundle; text-to-video, video-to-video or image-to-video is what the bundle's checkpoint was."""

    def __init__(self, bundle: str | os.PathLike[str], **options: Any) -> None:
        """``options`` are :func:`reelquant.runtime.pipeline.load_pipeline`'s: ``engine``, ``threads``, ``tiled``, …"""
        self._bundle, self._options = bundle, options
        self.pipeline: Pipeline = load_pipeline(bundle, **options)
        self.vae = _Vae(self)
        self._scheduler: str | None = None

    @classmethod
    def from_pretrained(
        cls, bundle: str | os.PathLike[str], torch_dtype: object = None, **options: Any
    ) -> ReelquantPipeline:
        """Open a bundle. ``torch_dtype`` is not looked at: what a bundle computes in was decided when it was made."""
        return cls(bundle, **options)

    def to(self, *_: object, **__: object) -> ReelquantPipeline:
        """Nothing changes: the engine decides where it computes (``engine=``, ``device=``)."""
        return self

    def enable_model_cpu_offload(self, *_: object, **__: object) -> None:
        """Networks are given up after use, so that memory holds one at a time."""
        self._reopen(keep=False)

    enable_sequential_cpu_offload = enable_model_cpu_offload

    @property
    def scheduler(self) -> str | None:
        """ "ddim" or "dpm"; None is the checkpoint's own."""
        return self._scheduler

    @scheduler.setter
    def scheduler(self, scheduler: object) -> None:
        """One of those names, or one of diffusers' two schedulers for CogVideoX."""
        by_class = {name: short for short, name in NAMES.items()}
        name = scheduler if isinstance(scheduler, str) or scheduler is None else by_class.get(type(scheduler).__name__)
        if scheduler is not None and name not in NAMES:
            raise BadInput(f"scheduler {scheduler!r:.60} is none of {', '.join([*NAMES, *by_class])}")
        self._scheduler = name

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: Picture | None = None,
        video: Video | None = None,
        negative_prompt: str | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        strength: float | None = None,
        num_videos_per_prompt: int = 1,
        generator: Any = None,
        latents: Any = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        schedule: str | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> Any:
        """Make a clip of each prompt, ``num_videos_per_prompt`` times: a :class:`ReelquantPipelineOutput`, or without
        ``return_dict`` a tuple of its fields. What is None is the bundle's default.

        ``generator`` is a seed, a NumPy generator, or a torch generator of the CPU: of that the noise is drawn as diffusers
        draws it, so that the clip is the one that diffusers makes, but for what the precision loses. ``latents`` [1,
        latent_frames, channels, h, w] replace the first draw. ``callback_on_step_end(pipe, step, timestep, {})`` is called
        after each denoising step; what it raises ends the clip. ``schedule`` is the name of one of the bundle's schedules, or a file
        of one: fewer steps are computed. ``timesteps`` are those to run the model at, in the place of evenly spaced ones; of
        diffusers' schedulers for CogVideoX, none takes any.

        Raises:
            BadInput: an argument cannot be used; the message says what can.
        """
        if output_type not in ("pil", "np", "latent"):
            raise BadInput(f"output_type is {output_type!r}, not one of pil, np, latent")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt or ())
        if not prompts:
            raise BadInput("there is no prompt; describe the clip in a sentence or two")
        asked = Request(
            "", image, negative_prompt or "", steps=num_inference_steps, guidance=guidance_scale, frames=num_frames,
            height=height, width=width, scheduler=self._scheduler, video=video, strength=strength,
            schedule=schedule, timesteps=timesteps,
        )  # fmt: skip

        made: list[Any] = []
        for text in prompts:
            for _ in range(num_videos_per_prompt):
                resolved = self._drawn(replace(asked, prompt=text), generator, latents)
                for note in resolved.notes:
                    warnings.warn(note, stacklevel=2)
                heard = self._heard(resolved, callback_on_step_end)
                if output_type == "latent":
                    made.append(self.pipeline.sample(resolved, Monitor(on_step=heard)))
                    continue
                frames = self.pipeline.generate(resolved, on_step=heard).frames
                made.append([Image.fromarray(f) for f in frames] if output_type == "pil" else frames / np.float32(255))
        return ReelquantPipelineOutput(made) if return_dict else (made,)

    def _heard(self, resolved: ResolvedRequest, callback: Callback | None) -> OnStep:
        timesteps = resolved.scheduler.timesteps(resolved.steps)[resolved.skip :]

        def heard(stage: str, done: int, total: int) -> None:
            if stage == "denoise" and callback is not None:
                callback(self, done - 1, int(timesteps[done - 1]), {})

        return heard

    def _drawn(self, request: Request, generator: Any, latents: Any) -> ResolvedRequest:
        """``request`` with what diffusers' pipelines would draw from ``generator``, in their order."""
        if latents is not None:
            given = np.asarray(latents, np.float32)
            request = replace(request, latents=given[0] if given.ndim == 5 else given)
        if generator is None or isinstance(generator, int | np.integer):
            return self.pipeline.resolve(replace(request, seed=None if generator is None else int(generator)))
        if isinstance(generator, np.random.Generator):
            return self.pipeline.resolve(replace(request, seed=int(generator.integers(2**32))))
        resolved = self.pipeline.resolve(replace(request, seed=generator.initial_seed() % 2**64))
        if str(generator.device) != "cpu":  # whose draws only that device can make
            return resolved
        return drawn_as_diffusers(resolved, self.pipeline.model.geometry, generator)

    def _reopen(self, **changed: Any) -> None:
        self._options = {**self._options, **changed}
        self.pipeline = load_pipeline(self._bundle, **self._options)
