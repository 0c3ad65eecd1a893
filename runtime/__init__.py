"""Bundle → clip: numpy and one engine. No torch, no onnx."""

from __future__ import annotations

from reelquant.runtime.diffusers_pipeline import ReelquantPipeline
from reelquant.runtime.errors import Cancelled, ReelquantError
from reelquant.runtime.media.video import Clip
from reelquant.runtime.pipeline import Pipeline, load_pipeline
from reelquant.runtime.request import Request

__all__ = ["Cancelled", "Clip", "Pipeline", "ReelquantError", "ReelquantPipeline", "Request", "load_pipeline"]
