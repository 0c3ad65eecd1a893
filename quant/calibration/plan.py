"""How much is sampled for calibration, and on clips of which size."""

from __future__ import annotations

from dataclasses import dataclass

from reelquant.runtime.bundle.manifest import Defaults
from reelquant.runtime.engines.registry import get_engine, onnx_engines
from reelquant.runtime.errors import BadInput
from reelquant.runtime.machine.memory import available_memory
from reelquant.runtime.models.cogvideox.family import CogVideoX
from reelquant.runtime.sizes import Size


@dataclass(frozen=True)
class CalibrationPlan:
    """``prompts`` clips of ``steps`` steps each give 2 · prompts · steps samples; of a few-step bundle, clips have its own steps.

    More prompts are worth more than more steps (``python -m benchmarks.calibration``).

    ``size`` is of those clips; without it they are of the bundle's default size.
    """

    prompts: int = 16
    steps: int = 5
    seed: int = 0
    engine: str = "onnxruntime"
    size: Size | None = None

    def wanted_size(self, defaults: Defaults, model: CogVideoX) -> Size:
        """The size of the clips, whether or not they can be made here.

        Raises:
            BadInput: the model cannot make it.
        """
        return model.geometry.checked(self.size or defaults.size)

    def clip_size(self, defaults: Defaults, model: CogVideoX) -> Size:
        """The size of the clips.

        Raises:
            BadInput: the model cannot make it, or this machine's memory cannot hold its attention.
        """
        size = model.checked(self.wanted_size(defaults, model))
        engine = get_engine(self.engine)
        if not engine.runs_onnx:
            able = ", ".join(onnx_engines())
            raise BadInput(f"{self.engine} runs no ONNX graphs, and calibration watches them; one of {able} does")
        held = engine.memory.high.scores if engine.memory else 0.0

        def attention(clip: Size) -> float:
            return held * 4 * 2 * model.heads * model.attention_tokens(clip) ** 2

        available = available_memory()
        if available is None or attention(size) <= available:
            return size
        fits = (f"; a size that fits: {clip}" for clip in model.smaller(size) if attention(clip) <= available / 2)
        raise BadInput(
            f"to calibrate on clips of {size}, {self.engine} holds "
            f"{attention(size) / 1e9:.1f} GB of attention scores, where {available / 1e9:.1f} GB of memory are free"
            f"{next(fits, '; use a larger machine')}"
        )
