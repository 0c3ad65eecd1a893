"""What a lint rule looks at, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import onnx_ir as ir

from reelquant.quant.graph.attentions import Attention, attention_nodes
from reelquant.quant.graph.static_shapes import known_shape


@dataclass(frozen=True)
class Finding:
    """One fault: which rule it breaks, at which node, what is wrong, and what to do.

    A ``warning`` builds, and may yet fail to run.
    """

    rule: str
    node: str
    fault: str
    remedy: str
    warning: bool = False

    def __str__(self) -> str:
        return f"{'warning: ' if self.warning else ''}{self.node}: {self.fault} [{self.rule}]; {self.remedy}"


@dataclass(frozen=True)
class LintContext:
    """A graph, the GPUs it is for ("sm89", …), and what its symbols are at the largest clip of the engine."""

    model: ir.Model
    targets: tuple[str, ...] = ()
    symbols: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def nodes(self) -> list[ir.Node]:
        return list(self.model.graph)

    @cached_property
    def attentions(self) -> list[Attention]:
        return attention_nodes(self.model)

    def elements(self, value: ir.Value | None) -> int | None:
        """How many elements a value has at this size, None where its shape does not say."""
        shape = known_shape(value, self.symbols)
        if shape is None:
            return None
        count = 1
        for side in shape:
            count *= side
        return count


def dtype_name(dtype: ir.DataType | None) -> str:
    """A dtype as users write it: fp16, bf16, fp32, fp8, int8, else ONNX's name in small letters."""
    if dtype is None:
        return "unknown"
    short = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16", "FLOAT8E4M3FN": "fp8", "FLOAT4E2M1": "fp4"}
    return short.get(dtype.name, dtype.name.lower())


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of a Constant node; None for what is computed."""
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value
    producer = value.producer()
    if producer is not None and producer.op_type == "Constant" and "value" in producer.attributes:
        return producer.attributes["value"].as_tensor()
    return None
