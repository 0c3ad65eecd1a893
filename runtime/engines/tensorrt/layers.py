"""An engine's layers as its builder logs them: what kind each is, in which number formats, by which tactic. That needs no GPU.

At level VERBOSE, with detailed profiling, a builder ends with a list, "Layers:", of a line for each. It is for people and changes from version to
version, so that what is not understood is left out and counted.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

# TensorRT's names of number formats in that list, and ours.
FORMATS = {
    "Float": "fp32", "Half": "fp16", "BFloat16": "bf16", "FP8": "fp8", "Int8": "int8", "FP4": "fp4", "Int4": "int4",
    "Int64": "int64", "Int32": "int32", "UInt8": "uint8", "Bool": "bool",
}  # fmt: skip
_BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "fp8": 8, "int8": 8, "fp4": 4, "int4": 4, "int64": 64, "int32": 32}
_LINE = re.compile(
    r"^Name: (.*?), LayerType: (\w+), Inputs: (.*), Constants: (.*), Outputs: (.*), TacticName: ([^,]*),"
)
_TENSOR = re.compile(r"Dimensions: \[([\d,]*)\].*?Datatype: (\w+)")
_WAITING = {"signal", "wait"}  # of one of the engine's streams for another


@dataclass(frozen=True)
class Operand:
    """A tensor that a layer reads or writes; ``format`` is as in :data:`FORMATS`."""

    shape: tuple[int, ...]
    format: str

    @property
    def bytes(self) -> float:
        return math.prod(self.shape) * _BITS.get(self.format, 8) / 8


@dataclass(frozen=True)
class Layer:
    """One kernel, or what the runtime makes one of. ``kind`` is "attention", "gemm", "convolution" or "other", which moves values
    and computes on each by itself.
    """

    name: str
    kind: str
    inputs: tuple[Operand, ...]
    constants: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    tactic: str

    @property
    def format(self) -> str:
        """In which it multiplies, or of what it writes."""
        multiplies = self.inputs if self.kind != "other" else self.outputs
        return multiplies[0].format if multiplies else "unknown"

    @property
    def bytes(self) -> float:
        """Read and written, each operand once."""
        return sum(each.bytes for each in (*self.inputs, *self.constants, *self.outputs))

    @property
    def flops(self) -> float:
        """Two for each multiplication of a product; what is done value by value is bound by memory and counts as none."""
        if self.kind == "attention" and len(self.inputs) >= 2:
            queries, keys = self.inputs[0].shape, self.inputs[1].shape
            return 4.0 * math.prod(queries) * math.prod(keys) / max(1, math.prod(queries[:-2]) * queries[-1])
        if self.kind == "gemm" and self.inputs and self.outputs:
            return 2.0 * math.prod(self.outputs[0].shape) * self.inputs[0].shape[-1]
        if self.kind == "convolution" and self.constants and self.outputs:
            return 2.0 * math.prod(self.outputs[0].shape) * math.prod(self.constants[0].shape[1:])
        return 0.0


def read_layers(log: Iterable[str]) -> tuple[Layer, ...] | None:
    """Those of the last list in a builder's log, but for waiting; None where there is none, or nothing of it is understood."""
    listed = next((text for text in reversed(list(log)) if text.startswith("Layers:")), None)
    if listed is None:
        return None
    found = [_layer(line) for line in listed.partition("I/O Tensors:")[0].splitlines()[1:] if line.strip()]
    known = [layer for layer in found if layer is not None]
    return tuple(layer for layer in known if layer.kind not in _WAITING) or None


def _layer(line: str) -> Layer | None:
    read = _LINE.match(line)
    if read is None:
        return None
    name, kind, inputs, constants, outputs, tactic = read.groups()
    return Layer(name, _kind(name, kind), _operands(inputs), _operands(constants), _operands(outputs), tactic)


def _kind(name: str, said: str) -> str:
    if said in _WAITING:
        return said
    if "_mha" in name:
        return "attention"
    if said in ("gemm", "convgemm") or (name.startswith("__myl_") and "Fc" in name):  # a product with what follows it
        return "gemm"
    return "convolution" if said in ("correlation", "convolution", "conv", "deconvolution") else "other"


def _operands(text: str) -> tuple[Operand, ...]:
    return tuple(
        Operand(tuple(int(side) for side in sides.split(",") if side), FORMATS.get(dtype, dtype.lower()))
        for sides, dtype in _TENSOR.findall(text)
    )


def summary(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """Layers that are alike as one entry, for a manifest: kind, formats of what is read, held and written, tactic, how many, and bytes and
    FLOPs of all of them; those with the most FLOPs and bytes first.
    """
    alike: Counter[tuple[str, ...]] = Counter()
    work: dict[tuple[str, ...], tuple[float, float]] = {}
    for layer in layers:
        read, held, written = (
            "+".join(dict.fromkeys(each.format for each in operands))
            for operands in (layer.inputs, layer.constants, layer.outputs)
        )
        # Without the hash at a tactic's end, by which layers of one kind differ.
        key = (layer.kind, layer.format, read, held, written, re.sub(r"_0x[0-9a-f]+$", "", layer.tactic))
        key = (*key[:-1], key[-1] if layer.kind != "other" else "")
        alike[key] += 1
        flops, moved = work.get(key, (0.0, 0.0))
        work[key] = (flops + layer.flops, moved + layer.bytes)
    order = sorted(alike, key=lambda key: work[key], reverse=True)
    names = ("kind", "format", "reads", "holds", "writes", "tactic")
    return [
        {**dict(zip(names, key, strict=True)), "count": alike[key], "flops": work[key][0], "bytes": work[key][1]}
        for key in order
    ]
