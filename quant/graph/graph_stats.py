"""Facts about a graph for manifests, read off its structure and not off what a pass says it did."""

from __future__ import annotations

from collections import Counter
from typing import Any

import onnx_ir as ir

from reelquant.quant.graph.attentions import Attention, attention_nodes
from reelquant.quant.graph.linears import Linear, linear_nodes, quantized_source, quantizer_of

_FP4, _INT4 = ir.DataType.FLOAT4E2M1, ir.DataType.INT4
_EIGHT_BIT = (ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN)


def graph_stats(model: ir.Model) -> dict[str, Any]:
    """Count nodes, linears (all and quantized), quantized attentions, bytes of stored tensors (all and per dtype) and values per dtype."""
    linears = linear_nodes(model)
    weights: Counter[str] = Counter()
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                weights[value.const_value.dtype.name] += value.const_value.nbytes
    values = Counter(_dtype(value) for node in model.graph.all_nodes() for value in node.outputs)
    return {
        "nodes": sum(1 for _ in model.graph.all_nodes()),
        "linears": len(linears),
        "quantized_linears": sum(map(is_quantized, linears)),
        "weight_only_linears": sum(map(is_weight_only, linears)),
        "quantized_attentions": sum(map(is_quantized_attention, attention_nodes(model))),
        "weight_bytes": sum(weights.values()),
        "weight_bytes_by_dtype": dict(sorted(weights.items())),
        "values_by_dtype": dict(sorted(values.items())),
    }


def is_quantized(linear: Linear) -> bool:
    """Whether the node itself reads DQ(initializer) and DQ(Q(activation)), both of one dtype of 8 bit or FP4."""
    quantizer, weight = quantizer_of(linear.node.inputs[0]), quantized_source(linear.node.inputs[1])
    if quantizer is None or weight is None or not weight.is_initializer() or weight.dtype not in (*_EIGHT_BIT, _FP4):
        return False
    return _quantizes_to(quantizer) == weight.dtype


def is_weight_only(linear: Linear) -> bool:
    """Whether the node reads DQ(initializer of 8 or 4 bit) and an activation without Q/DQ."""
    activation, weight = (quantized_source(value) for value in linear.node.inputs[:2])
    return (
        activation is None and weight is not None and weight.is_initializer() and weight.dtype in (*_EIGHT_BIT, _INT4)
    )


def is_quantized_attention(attention: Attention) -> bool:
    """Whether Q, K, V and the softmax's output all come through Q/DQ of one 8-bit dtype: less does not fuse."""
    operands = (*attention.scores.inputs[:2], *attention.mix.inputs[:2])
    dtypes = {source.dtype if (source := quantized_source(value)) is not None else None for value in operands}
    return len(dtypes) == 1 and dtypes <= set(_EIGHT_BIT)


def _quantizes_to(node: ir.Node) -> ir.DataType | None:
    """The dtype of a quantizer's output, which ONNX takes from its zero point; TensorRT's operators say it, or have one alone."""
    zero_point = node.inputs[2] if len(node.inputs) > 2 else None
    if zero_point is not None:
        return zero_point.dtype
    return ir.DataType(node.attributes.get_int("output_dtype", _FP4.value)) if node.domain == "trt" else None


def _dtype(value: ir.Value) -> str:
    return value.dtype.name if value.dtype is not None else "UNKNOWN"
