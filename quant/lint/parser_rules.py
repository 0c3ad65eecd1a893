"""Rules about what an operator may be fed: TensorRT's parser knows the operator, and refuses this use of it."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from reelquant.quant.lint.finding import Finding, LintContext, constant, dtype_name

_MOST_DIMENSIONS = 8
_NOT_CAST_TO = frozenset({"UINT8", "UINT16", "UINT32", "UINT64", "INT16", "STRING", "COMPLEX64", "COMPLEX128"})
# Inputs that say a shape or axes: they may be computed of shapes, and not of what a tensor holds.
_SHAPES = {"Reshape": (1,), "Expand": (1,), "Tile": (1,), "ConstantOfShape": (0,), "Range": (0, 1, 2), "Slice": (1, 2, 3, 4),
           "Squeeze": (1,), "Unsqueeze": (1,)}  # fmt: skip
_RESIZED = {"linear": 3, "cubic": 2}  # how many of the last dimensions


def casts(context: LintContext) -> Iterator[Finding]:
    for node in context.nodes:
        to = ir.DataType(node.attributes.get_int("to", 1)) if node.op_type == "Cast" else None
        if to is not None and to.name in _NOT_CAST_TO:
            yield Finding(
                "cast", node.name or "", f"TensorRT has no {dtype_name(to)} within a graph", "use INT32 or fp32"
            )


def dimensions(context: LintContext) -> Iterator[Finding]:
    for node in context.nodes:
        for value in node.outputs:
            if value.shape is not None and value.shape.rank() > _MOST_DIMENSIONS:
                fault = f"{value.name} has {value.shape.rank()} dimensions, and TensorRT's tensors have at most 8"
                yield Finding("dimensions", node.name or "", fault, "join dimensions that are next to one another")


def shapes_from_data(context: LintContext) -> Iterator[Finding]:
    for node in context.nodes:
        places = (1,) if node.op_type.startswith("Reduce") else _SHAPES.get(node.op_type, ())
        for place in places:
            value = node.inputs[place] if place < len(node.inputs) else None
            if value is not None and _of_data(value, set()):
                fault = f"{node.op_type}'s {value.name} depends on what a tensor holds, and TensorRT plans shapes ahead"
                yield Finding("shape-from-data", node.name or "", fault, "compute it of shapes, or make it a constant")


def convolutions(context: LintContext) -> Iterator[Finding]:
    for node in context.nodes:
        weight = node.inputs[1] if node.op_type in ("Conv", "ConvTranspose") else None
        if weight is not None and weight.shape is not None and weight.shape.rank() > 5:
            fault = f"{node.op_type} over {weight.shape.rank() - 2} axes; TensorRT convolves over at most 3"
            yield Finding("convolution", node.name or "", fault, "convolve over fewer axes at a time")


def resizes(context: LintContext) -> Iterator[Finding]:
    for node in context.nodes:
        if node.op_type != "Resize":
            continue
        mode = node.attributes.get_string("mode", "nearest")
        scales = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if mode in _RESIZED and scales is not None and (scales.numpy()[: -_RESIZED[mode]] != 1).any():
            fault = f"a {mode} Resize of other than the last {_RESIZED[mode]} dimensions"
            yield Finding("resize", node.name or "", fault, "resize fewer dimensions, or use mode nearest")


def attention_operators(context: LintContext) -> Iterator[Finding]:
    for node in context.nodes:
        if node.op_type != "Attention" or node.domain != "":
            continue
        query = node.inputs[0]
        if query is not None and query.dtype == ir.DataType.FLOAT:
            fault = "the operator Attention in fp32, which TensorRT refuses or leaves unfused"
            yield Finding(
                "attention-operator", node.name or "", fault, "write it as MatMul, Softmax, MatMul, or use 16 bit"
            )
        if node.attributes.get_float("softcap", 0.0):
            fault = "the operator Attention with softcap, which TensorRT does not take"
            yield Finding("attention-operator", node.name or "", fault, "write it as MatMul, Tanh, Softmax, MatMul")


def blocks(context: LintContext) -> Iterator[Finding]:
    for node in context.nodes:
        size = node.attributes.get_int("block_size", 0)
        if size and size != 16 and any(_is_fp4(value) for value in (*node.inputs, *node.outputs)):
            fault = f"FP4 in blocks of {size}; TensorRT's are of 16"
            yield Finding("block-size", node.name or "", fault, "quantize in blocks of 16")


def _is_fp4(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT4E2M1


def _of_data(value: ir.Value, seen: set[ir.Value]) -> bool:
    """Whether ``value`` is computed of what an input or a weight in floating point holds."""
    if value in seen:
        return False
    seen.add(value)
    producer = value.producer()
    if producer is None:
        return not value.is_initializer() and value.dtype is not None and value.dtype.is_floating_point()
    if producer.op_type in ("Shape", "Size"):
        return False
    return any(_of_data(each, seen) for each in producer.inputs if each is not None)
