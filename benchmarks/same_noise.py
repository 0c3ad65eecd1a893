"""One sampling, asked of diffusers and of this project with the same noise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from reelquant.runtime.models.cogvideox.geometry import Geometry
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.request import Request, ResolvedRequest
from reelquant.runtime.sampling.torch_noise import drawn_as_diffusers
from reelquant.runtime.sizes import Size

Floats = NDArray[np.float32]
_SEED = 5


@dataclass(frozen=True)
class Sampling:
    """A prompt, a size and a number of steps; with ``image``, from an image uint8 [height, width, 3]."""

    prompt: str
    size: Size
    steps: int
    geometry: Geometry
    image: NDArray[np.uint8] | None = None

    @classmethod
    def random(cls, task: str, prompt: str, size: Size, steps: int, geometry: Geometry) -> Sampling:
        image = np.random.default_rng(4).integers(0, 256, (size.height, size.width, 3), np.uint8)
        return cls(prompt, size, steps, geometry, image if task == "i2v" else None)

    def noise(self) -> Floats:
        """What the first latents are, float32 [latent_frames, channels, h, w], padded to whole patches of frames."""
        shape = self.geometry.sampled_shape(self.size)
        return np.random.default_rng(3).standard_normal(shape, dtype=np.float32)

    def resolved(self, pipeline: Pipeline) -> ResolvedRequest:
        """With the draws of diffusers' generator: the image's posterior, then those of each step."""
        request = Request(
            self.prompt, self.image, steps=self.steps, frames=self.size.frames, height=self.size.height,
            width=self.size.width, seed=0, latents=self.noise(),
        )  # fmt: skip
        generator = torch.Generator().manual_seed(_SEED)
        return drawn_as_diffusers(pipeline.resolve(request), self.geometry, generator)

    def arguments(self, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        """What a pipeline of diffusers takes for it, but for the prompt: it returns the last latents."""
        return {
            "height": self.size.height,
            "width": self.size.width,
            "num_frames": self.size.frames,
            "num_inference_steps": self.steps,
            "latents": torch.from_numpy(self.noise())[None].to(dtype),
            "generator": torch.Generator().manual_seed(_SEED),
            "output_type": "latent",
            **({} if self.image is None else {"image": Image.fromarray(self.image)}),
        }


def load_diffusers(checkpoint: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The checkpoint's own pipeline."""
    name = diffusers.DiffusionPipeline.load_config(checkpoint)["_class_name"]
    pipeline = getattr(diffusers, name).from_pretrained(checkpoint, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
