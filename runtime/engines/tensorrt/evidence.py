"""What a builder says of the engine it made, read from its own log: that needs no GPU, and cannot flatter."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

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
    allocations; ``attention`` is "fused", "unfused", "too small to tell" or "none". ``layers`` counts layers by number
    format where the engine was built on a GPU that it runs on.
    """

    activation_bytes: int
    scratch_bytes: int
    weight_bytes: int
    builder_peak_bytes: int
    build_seconds: float
    engine_bytes: int
    attention: str
    layers: dict[str, int] | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def read_evidence(log: Iterable[str], seconds: float, engine_bytes: int, scores_bytes: int) -> Evidence:
    """Evidence from the lines of a builder's log.

    ``scores_bytes`` are those of one attention's scores, [batch, heads, tokens, tokens] in 16 bit, 0 without attention.

    Raises:
        EngineError: the log lacks a line that all known versions write.
    """
    lines = list(log)
    found = {name: _last(pattern, lines) for name, pattern in _LINES.items()}
    missing = [name for name, value in found.items() if value is None]
    if missing:
        raise EngineError(
            f"the builder's log does not say {', '.join(missing)}; this version of TensorRT writes another log: "
            "report it with its version"
        )
    known = {name: value for name, value in found.items() if value is not None}
    peak = (_last(_PEAK, lines) or 0) << 20
    return Evidence(
        activation_bytes=known["activation_bytes"],
        scratch_bytes=known["scratch_bytes"],
        weight_bytes=known["weight_bytes"],
        builder_peak_bytes=peak,
        build_seconds=round(seconds, 3),
        engine_bytes=engine_bytes,
        attention=judge_attention(known["activation_bytes"], scores_bytes),
    )


def judge_attention(activation_bytes: int, scores_bytes: int) -> str:
    """Whether the scores were ever whole in memory: an unfused attention holds them at least once, in 16 bit.

    Scores grow with the square of the tokens and all else with their number, so of few tokens it cannot be told.
    """
    if scores_bytes == 0:
        return "none"
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
            f"{name}: the builder did not fuse attention: {evidence.activation_bytes / 1e9:.1f} GB of activations hold "
            "the whole scores; see that Q, K, V and the softmax are all quantized or none (reelquant lint), "
            "or use another precision"
        )
    if evidence.weight_bytes > _ROOM * stored_weight_bytes + _SMALL:
        raise EngineError(
            f"{name}: the engine holds {evidence.weight_bytes / 1e6:.0f} MB of weights where the graph stores "
            f"{stored_weight_bytes / 1e6:.0f} MB: the builder undid their quantization; "
            "use another recipe, or report this one with TensorRT's version"
        )


def _last(pattern: re.Pattern[str], lines: list[str]) -> int | None:
    return next((int(found[1]) for line in reversed(lines) if (found := pattern.search(line))), None)
