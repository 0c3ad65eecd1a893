"""Rules about QuantizeLinear and DequantizeLinear: what the parser takes, and what becomes an 8-bit product."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from reelquant.quant.lint.finding import Finding, LintContext, constant, dtype_name

_STORABLE = frozenset({"INT8", "INT4", "FLOAT8E4M3FN", "FLOAT4E2M1"})
_PRODUCTS = ("MatMul", "Gemm", "Conv")


def scales(context: LintContext) -> Iterator[Finding]:
    for node in _qdq(context):
        scale = node.inputs[1]
        tensor = constant(scale)
        if scale is None or tensor is None:
            continue
        values = tensor.numpy().astype(np.float32)
        if not np.all(np.isfinite(values) & (values > 0)):
            fault = f"a scale of {node.op_type} is {values.min():.3g}, and scales must be positive and finite"
            yield Finding("scale", node.name or "", fault, "calibrate again, or leave this tensor in high precision")
        data = node.inputs[0]
        if node.op_type == "QuantizeLinear" and data is not None and data.dtype != scale.dtype:
            fault = f"it quantizes {dtype_name(data.dtype)} with a scale of {dtype_name(scale.dtype)}"
            yield Finding("scale-type", node.name or "", fault, "store the scale in the type of what is quantized")


def zero_points(context: LintContext) -> Iterator[Finding]:
    for node in _qdq(context):
        tensor = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if tensor is not None and tensor.numpy().astype(np.float32).any():
            fault = f"{node.op_type} has a zero point that is not zero, and TensorRT quantizes symmetrically only"
            yield Finding("zero-point", node.name or "", fault, "quantize symmetrically (absmax / 127)")


def stored_types(context: LintContext) -> Iterator[Finding]:
    for node in _qdq(context):
        read = node.op_type == "DequantizeLinear"
        stored = node.inputs[0] if read else node.outputs[0]
        able = _STORABLE if read else _STORABLE | {"UINT8"}  # which may leave a graph, and not be read in it
        if stored is not None and stored.dtype is not None and stored.dtype.name not in able:
            fault = f"{node.op_type} of {dtype_name(stored.dtype)}; TensorRT takes FP8, FP4, INT8 and INT4"
            yield Finding("stored-type", node.name or "", fault, "keep biases in the graph's own precision")


def product_formats(context: LintContext) -> Iterator[Finding]:
    for node in context.nodes:
        if node.op_type not in _PRODUCTS:
            continue
        formats = [_format(value, activation=i == 0) for i, value in enumerate(node.inputs[:2])]
        if None not in formats and formats[0] != formats[1]:
            fault = f"{node.op_type} multiplies {dtype_name(formats[0])} by {dtype_name(formats[1])}"
            yield Finding("product-formats", node.name or "", fault, "quantize both sides in one format")


def _qdq(context: LintContext) -> Iterator[ir.Node]:
    return (node for node in context.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear"))


def _format(value: ir.Value | None, activation: bool) -> ir.DataType | None:
    """The 8-bit type that ``value`` is dequantized from; None where it is in high precision."""
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "DequantizeLinear" or producer.inputs[0] is None:
        return None
    return producer.inputs[0].dtype
