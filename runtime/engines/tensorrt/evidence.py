"""What a builder says of the engine it made, read from its own log: that needs no GPU, and cannot flatter."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from reelquant.runtime.engines.tensorrt.layers import read_layers, summary
from reelquant.runtime.errors import EngineError

# As TensorRT 10.16, 11.4 and RTX 1.7 write them, at level INFO.
_LINES = {
    "activation_bytes": re.compile(r"Total Activation Memory: (\d+) bytes"),
    "scratch_bytes": re.compile(r"Max Scratch Memory: (\d+) bytes"),
    "weight_bytes": re.compile(r"Total Weights Memory: (\d+) bytes"),
}
_PEAK = re.compile(r"Peak memory usage of TRT CPU/GPU memory allocators: CPU (\d+) MiB")
# What an engine adds to its weights: scales, tables, padding to kernels' tiles.
_ROOM = 1.1
_SMALL = 4 << 20
# Scores from which a fused attention's graph always takes less than they would: 2,000 tokens of CogVideoX-2b.
TELLING_SCORES = 256 << 20


@dataclass(frozen=True)
class Evidence:
    """Bytes of one engine's activations, of the largest scratch within them, of its weights, and of the builder's own
    allocations; ``attention`` is "fused", "unfused", "too small to tell", "not known" or "none". ``layers`` are
    :func:`reelquant.runtime.engines.tensorrt.layers.summary`'s. None of what this version of TensorRT does not say.
    """

    activation_bytes: int | None
    scratch_bytes: int | None
    weight_bytes: int | None
    builder_peak_bytes: int
    build_seconds: float
    engine_bytes: int
    attention: str
    layers: list[dict[str, Any]] | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def read_evidence(log: Iterable[str], seconds: float, engine_bytes: int, scores_bytes: int) -> Evidence:
    """Evidence from a builder's log.

    ``scores_bytes`` are those of one attention's scores, [batch, heads, tokens, tokens] in 16 bit, 0 without attention. A finished
    engine is not thrown away for a log that is written otherwise: what it does not say is not known.
    """
    lines = list(log)
    found = {name: _last(pattern, lines) for name, pattern in _LINES.items()}
    peak = (_last(_PEAK, lines) or 0) << 20
    layers = read_layers(lines)
    return Evidence(
        **found,
        builder_peak_bytes=peak,
        build_seconds=round(seconds, 3),
        engine_bytes=engine_bytes,
        attention=judge_attention(found["activation_bytes"], scores_bytes),
        layers=None if layers is None else summary(layers),
    )


def judge_attention(activation_bytes: int | None, scores_bytes: int) -> str:
    """Whether the scores were ever whole in memory: an unfused attention holds them at least once, in 16 bit.

    Scores grow with the square of the tokens and all else with their number, so of few tokens it cannot be told.
    """
    if scores_bytes == 0:
        return "none"
    if activation_bytes is None:
        return "not known"
    if activation_bytes < scores_bytes:
        return "fused"
    return "unfused" if scores_bytes >= TELLING_SCORES else "too small to tell"


def check_evidence(name: str, evidence: Evidence, stored_weight_bytes: int) -> None:
    """Refuse an engine that is not what its graph asks for.

    ``stored_weight_bytes`` are those of the graph's weights as the ONNX file stores them.

    Raises:
        EngineError: its attention is not fused, or its weights are larger than they are stored.
    """
    if evidence.attention == "unfused":
        raise EngineError(
            f"{name}: the builder did not fuse attention: {(evidence.activation_bytes or 0) / 1e9:.1f} GB of activations hold "
            "the whole scores; see that Q, K, V and the softmax are all quantized or none (reelquant lint), "
            "or use another precision"
        )
    if evidence.weight_bytes is not None and evidence.weight_bytes > _ROOM * stored_weight_bytes + _SMALL:
        raise EngineError(
            f"{name}: the engine holds {evidence.weight_bytes / 1e6:.0f} MB of weights where the graph stores "
            f"{stored_weight_bytes / 1e6:.0f} MB: the builder undid their quantization; "
            "use another recipe, or report this one with TensorRT's version"
        )


def _last(pattern: re.Pattern[str], lines: list[str]) -> int | None:
    return next((int(found[1]) for line in reversed(lines) if (found := pattern.search(line))), None)
