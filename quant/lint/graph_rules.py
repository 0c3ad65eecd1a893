"""Rules about any graph: operators TensorRT lacks, types that must agree, tensors beyond 2³¹ elements."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from reelquant.quant.lint.finding import Finding, LintContext, dtype_name
from reelquant.quant.lint.operators import SUPPORTED, WITHOUT_KERNEL

# All of their float inputs must be of one type: strong typing casts nothing.
_ONE_TYPE = frozenset(
    [
        "MatMul",
        "Gemm",
        "Conv",
        "ConvTranspose",
        "Einsum",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Mod",
        "Max",
        "Min",
        "Sum",
        "Mean",
        "Concat",
        "Where",
        "PRelu",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "LayerNormalization",
        "GroupNormalization",
        "InstanceNormalization",
    ]
)
_MOST_ELEMENTS = 2**31 - 1


def operators(context: LintContext) -> Iterator[Finding]:
    for node in context.nodes:
        if node.domain not in ("", "ai.onnx", "trt"):
            fault = f"{node.op_type} is of the domain {node.domain}, which TensorRT does not know"
            yield Finding("operator", node.name or "", fault, "express it in standard ONNX operators")
        elif node.domain != "trt" and node.op_type not in SUPPORTED:
            fault = f"TensorRT's parser has no {node.op_type}"
            yield Finding("operator", node.name or "", fault, "express it in other operators")
        elif node.op_type in WITHOUT_KERNEL:
            fault = f"TensorRT's parser takes {node.op_type}, and nothing in TensorRT-RTX computes it"
            yield Finding("operator", node.name or "", fault, "express it in other operators")


def mixed_types(context: LintContext) -> Iterator[Finding]:
    for node in context.nodes:
        if node.op_type not in _ONE_TYPE:
            continue
        inputs = node.inputs[1:] if node.op_type == "Where" else node.inputs
        types = {value.dtype for value in inputs if value is not None and value.dtype is not None}
        if len(types) > 1:
            mixed = " and ".join(sorted(map(dtype_name, types)))
            fault = f"{node.op_type} reads {mixed}, and a strongly typed network casts nothing by itself"
            yield Finding("mixed-types", node.name or "", fault, "cast its inputs to one type")


def volumes(context: LintContext) -> Iterator[Finding]:
    """A warning: TensorRT-RTX 1.7.1 builds such graphs, while NVIDIA says of standard TensorRT that its convolutions do not
    take them (https://github.com/NVIDIA/TensorRT/issues/4123).
    """
    attention = {id(value) for each in context.attentions for value in _scores(each.scores, each.mix)}
    for node in context.nodes:
        for value in node.outputs:
            elements = context.elements(value)
            if elements is not None and elements > _MOST_ELEMENTS and id(value) not in attention:
                fault = (
                    f"{value.name} has {elements:,} elements, beyond 2³¹ - 1, which not all of TensorRT's kernels take"
                )
                remedy = "build for a smaller size, or decode in tiles (--tiled)"
                yield Finding("volume", node.name or "", fault, remedy, warning=True)


def _scores(first: ir.Node, last: ir.Node) -> Iterator[ir.Value]:
    """The values from the scores' MatMul up to the one that mixes: inside a fused attention they are never whole."""
    node = first
    while node is not last:
        value = node.outputs[0]
        yield value
        users = list(value.consumers())
        if len(users) != 1:
            return
        node = users[0]
