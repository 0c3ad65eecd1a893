"""One sampling twice: by a checkpoint's own diffusers pipeline in fp32, and by its fp32 bundle, from the same noise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.same_noise import Sampling, load_diffusers
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.relative_l2 import relative_l2
from reelquant.runtime.sizes import Size

STEPS = 2
PROMPT = "a girl in a red coat walks through the snow"
TOLERANCE = 1e-3  # relative L2 of the final latents


@dataclass(frozen=True)
class Case:
    variant: str
    frames: int
    height: int = 64
    width: int = 96
    engine: str = "onnxruntime"

    def __str__(self) -> str:
        return f"{self.variant}-{self.frames}x{self.height}x{self.width}"


def difference(case: Case, checkpoint: Path, bundle: Bundle, engine: str = "onnxruntime") -> float:
    """Relative L2 of the final latents, the bundle's against diffusers'."""
    size = Size(case.frames, case.height, case.width)
    sampling = Sampling.random(bundle.manifest.task, PROMPT, size, STEPS, bundle.manifest.geometry)
    pipeline = Pipeline(bundle, EngineOptions(engine))
    latents = pipeline.sample(sampling.resolved(pipeline))
    del pipeline
    wanted = load_diffusers(checkpoint)(prompt=PROMPT, **sampling.arguments()).frames[0].numpy()
    return relative_l2(latents, wanted[-len(latents) :])
