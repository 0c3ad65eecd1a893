"""Bundle → clip: numpy and one engine. No torch, no onnx."""

from __future__ import annotations

from reelquant.runtime.pipeline import Pipeline, load_pipeline
from reelquant.runtime.request import Request
from reelquant.runtime.video import Clip

__all__ = ["Clip", "Pipeline", "Request", "load_pipeline"]
