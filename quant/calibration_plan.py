"""How much is sampled for calibration, and on clips of which size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reelquant.runtime.engines.registry import get_engine, onnx_engines
from reelquant.runtime.errors import BadInput
from reelquant.runtime.manifest import Defaults
from reelquant.runtime.memory import available_memory
from reelquant.runtime.positions import check_positions, has_positions
from reelquant.runtime.sizes import Geometry, Size, checked, smaller_sizes


@dataclass(frozen=True)
class CalibrationPlan:
    """``prompts`` clips of ``steps`` steps each give 2 · prompts · steps samples.

    More prompts are worth more than more steps (``python -m benchmarks.calibration``).

    ``size`` (height, width) and ``frames`` are of those clips; without them they are of the bundle's default size.
    """

    prompts: int = 16
    steps: int = 5
    seed: int = 0
    engine: str = "onnxruntime"
    size: tuple[int, int] | None = None
    frames: int | None = None

    def wanted_size(self, defaults: Defaults, geometry: Geometry) -> Size:
        """The size of the clips, whether or not they can be made here.

        Raises:
            BadInput: no model of this geometry can make it.
        """
        height, width = self.size or (defaults.height, defaults.width)
        return checked(Size(defaults.frames if self.frames is None else self.frames, height, width), geometry)

    def clip_size(
        self, defaults: Defaults, geometry: Geometry, transformer: Mapping[str, Any], text_tokens: int
    ) -> Size:
        """The size of the clips, for a model with these defaults and this transformer config.

        Raises:
            BadInput: the model cannot make it, or this machine's memory cannot hold its attention.
        """
        size = self.wanted_size(defaults, geometry)
        check_positions(transformer, *size.latent_shape(geometry)[2:])
        engine = get_engine(self.engine)
        if not engine.runs_onnx:
            able = ", ".join(onnx_engines())
            raise BadInput(f"{self.engine} runs no ONNX graphs, and calibration watches them; one of {able} does")
        held = engine.memory.high.scores if engine.memory else 0.0

        def attention(clip: Size) -> float:
            tokens = text_tokens + clip.video_tokens(geometry)
            return held * 4 * 2 * int(transformer["num_attention_heads"]) * tokens**2

        available = available_memory()
        if available is None or attention(size) <= available:
            return size
        fits = (
            f"; what fits: --calibration-size {clip.height}x{clip.width} --calibration-frames {clip.frames}"
            for clip in smaller_sizes(size, geometry)
            if attention(clip) <= available / 2 and has_positions(transformer, *clip.latent_shape(geometry)[2:])
        )
        raise BadInput(
            f"to calibrate on {size.frames} frames of {size.height}x{size.width}, {self.engine} holds "
            f"{attention(size) / 1e9:.1f} GB of attention scores, where {available / 1e9:.1f} GB of memory are free"
            f"{next(fits, '; use a larger machine')}"
        )
