"""Rules about any graph: operators the parser lacks, types that must agree, tensors beyond 2³¹ elements."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from reelquant.quant.lint.finding import Finding, Subject, dtype_name
from reelquant.quant.lint.operators import SUPPORTED

# All of their float inputs must be of one type: strong typing casts nothing.
_ONE_TYPE = frozenset({"MatMul", "Gemm", "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Concat", "Einsum", "Conv"})
_MOST_ELEMENTS = 2**31 - 1


def operators(subject: Subject) -> Iterator[Finding]:
    for node in subject.nodes:
        if node.domain not in ("", "ai.onnx", "trt"):
            fault = f"{node.op_type} is of the domain {node.domain}, which TensorRT does not know"
            yield Finding("operator", node.name or "", fault, "express it in standard ONNX operators")
        elif node.domain != "trt" and node.op_type not in SUPPORTED:
            fault = f"TensorRT's parser has no {node.op_type}"
            yield Finding("operator", node.name or "", fault, "express it in other operators")


def mixed_types(subject: Subject) -> Iterator[Finding]:
    for node in subject.nodes:
        if node.op_type not in _ONE_TYPE:
            continue
        types = {value.dtype for value in node.inputs if value is not None and value.dtype is not None}
        if len(types) > 1:
            mixed = " and ".join(sorted(map(dtype_name, types)))
            fault = f"{node.op_type} reads {mixed}, and a strongly typed network casts nothing by itself"
            yield Finding("mixed-types", node.name or "", fault, "cast its inputs to one type")


def volumes(subject: Subject) -> Iterator[Finding]:
    attention = {id(value) for each in subject.attentions for value in _scores(each.scores, each.mix)}
    for node in subject.nodes:
        for value in node.outputs:
            elements = subject.elements(value)
            if elements is not None and elements > _MOST_ELEMENTS and id(value) not in attention:
                fault = f"{value.name} has {elements:,} elements, beyond 2³¹ - 1"
                yield Finding(
                    "volume", node.name or "", fault, "build for a smaller size, or decode in tiles (--tiled)"
                )


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
