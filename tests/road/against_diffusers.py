"""One sampling twice: by a checkpoint's own diffusers pipeline in fp32, and by its fp32 bundle, from the same noise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from reelquant.export.parity import relative_l2
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.request import Request

STEPS = 2
PROMPT = "a girl in a red coat walks through the snow"
TOLERANCE = 1e-3  # relative L2 of the final latents


@dataclass(frozen=True)
class Case:
    variant: str
    frames: int
    height: int = 64
    width: int = 96

    def __str__(self) -> str:
        return f"{self.variant}-{self.frames}x{self.height}x{self.width}"


def difference(case: Case, checkpoint: Path, bundle: Bundle, engine: str = "onnxruntime") -> float:
    """Relative L2 of the final latents, the bundle's against diffusers'."""
    rng = np.random.default_rng(3)
    pair = bundle.manifest.geometry.patch_t
    frames = -(-((case.frames - 1) // 4 + 1) // pair) * pair
    shape = (frames, 16, case.height // 8, case.width // 8)
    noise = rng.standard_normal(shape, dtype=np.float32)
    image = rng.integers(0, 256, (case.height, case.width, 3), np.uint8) if case.variant.endswith("i2v") else None

    # The draws of diffusers' generator, in its order: the image's posterior, then one for each step.
    generator = torch.Generator().manual_seed(5)
    image_noise = (
        torch.randn((1, 16, 1, *shape[2:]), generator=generator)[:, :, 0].numpy() if image is not None else None
    )
    step_noise = tuple(torch.randn((1, *shape), generator=generator)[0].numpy() for _ in range(STEPS))

    request = Request(
        PROMPT, image, steps=STEPS, frames=case.frames, height=case.height, width=case.width, seed=0,
        latents=noise, image_noise=image_noise, step_noise=step_noise,
    )  # fmt: skip
    pipeline = Pipeline(bundle, engine)
    latents = pipeline.sample(request, pipeline.settings(request))
    del pipeline
    wanted = _reference(checkpoint, case, noise, image)
    return relative_l2(latents, wanted[-len(latents) :])


def _reference(checkpoint: Path, case: Case, noise: NDArray[np.float32], image: NDArray[np.uint8] | None) -> Any:
    name = diffusers.DiffusionPipeline.load_config(checkpoint)["_class_name"]
    pipeline = getattr(diffusers, name).from_pretrained(checkpoint, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return (
        pipeline(
            prompt=PROMPT,
            height=case.height,
            width=case.width,
            num_frames=case.frames,
            num_inference_steps=STEPS,
            latents=torch.from_numpy(noise)[None],
            generator=torch.Generator().manual_seed(5),
            output_type="latent",
            **({} if image is None else {"image": Image.fromarray(image)}),
        )
        .frames[0]
        .numpy()
    )
