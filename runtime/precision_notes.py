"""What each precision is worth on the CPU at hand, in words: does it save time, memory, or neither?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reelquant.runtime.cpu_units import instruction_sets
from reelquant.runtime.engine import ENGINES, engine_module
from reelquant.runtime.manifest import Manifest

REDUCED = "int8-reduced"


@dataclass(frozen=True)
class Note:
    """``faster`` is whether a step takes less time than in fp32 on the same engine; ``text`` says what is saved."""

    precision: str
    faster: bool
    text: str

    @property
    def disappoints(self) -> bool:
        """Whether a user would take it for fast, and it is not."""
        return not self.faster and self.precision in ("int8", "fp8")


def notes(engine: str) -> tuple[Note, ...]:
    """What each precision is worth on a CPU engine here; the measurements are in docs/benchmarks.md.

    Raises:
        BadInput: the engine is unknown or runs no ONNX graphs.
        MissingExtra: its package is not installed.
    """
    if engine_module(engine).multiplies_int8():
        text = "saves time and memory: this CPU multiplies bytes"
        int8 = Note("int8", True, text), Note(REDUCED, True, f"{text}; int8 is closer to fp32 and as fast")
    else:
        saved = "memory, not time" if engine == "openvino" else "disk, not time or memory"
        exact = Note("int8", False, f"saves {saved}: without VNNI it is computed in float to stay exact")
        int8 = exact, _reduced(engine)
    return (
        Note("fp32", False, "what the others are measured against"),
        Note("fp16", False, "saves disk, not time: it is computed in fp32"),
        *int8,
        Note("weight-only", False, "saves memory, not time: int8-weight and int4-weight are computed in float"),
        Note("fp8", False, "costs time: it is emulated, to judge its quality"),
    )


def _reduced(engine: str) -> Note:
    """Of INT8 with 7-bit weights, on a CPU without VNNI."""
    if engine == "openvino" and "avx512f" in instruction_sets():
        return Note(REDUCED, True, "saves time and memory: its 7-bit weights are exact in this CPU's INT8 kernels")
    return Note(
        REDUCED, False, "saves memory, not time: it is exact in this CPU's INT8 kernels, which are as fast as fp32"
    )


def note_of(manifest: Manifest, engine: str) -> Note | None:
    """What the transformer's precision is worth on ``engine`` here; None where only a measurement could say."""
    if engine not in ENGINES or not engine_module(engine).on_cpu():
        return None
    precision = _precision(manifest.components["transformer"].stats.get("main", {}), manifest.base)
    rules = (manifest.quantization or {}).get("rules", [])
    if precision == "int8" and any(numerics == "int8_reduced" for _, numerics in rules):
        precision = REDUCED
    return next((note for note in notes(engine) if note.precision == precision), None)


def _precision(stats: Mapping[str, Any], base: str) -> str:
    stored = stats.get("weight_bytes_by_dtype", {})
    if stats.get("quantized_linears"):
        return "fp8" if "FLOAT8E4M3FN" in stored else "int8" if "INT8" in stored else "nvfp4"
    return "weight-only" if stats.get("weight_only_linears") else base
