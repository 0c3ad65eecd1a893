"""Rules about attention: at video lengths it must fuse, or its scores take tens of gigabytes."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from reelquant.quant.graph.attentions import Attention
from reelquant.quant.graph.linears import quantized_source
from reelquant.quant.lint.finding import Finding, LintContext, dtype_name
from reelquant.runtime.engines.tensorrt.evidence import TELLING_SCORES


def attention_qdq(context: LintContext) -> Iterator[Finding]:
    for attention in _large(context):
        quantized = {name: _format(value) for name, value in _operands(attention).items()}
        formats = set(quantized.values())
        if len(formats) > 1:
            with_qdq = ", ".join(name for name, format in quantized.items() if format)
            without = ", ".join(name for name, format in quantized.items() if not format)
            fault = f"its attention has Q/DQ on {with_qdq} and not on {without}: {_cost(context, attention)}"
            yield Finding("attention-qdq", attention.name, fault, "quantize Q, K, V and the softmax's output, or none")
        elif formats == {ir.DataType.INT8}:
            fault = f"INT8 attention has no fused kernel at this length: {_cost(context, attention)}"
            yield Finding("attention-qdq", attention.name, fault, "leave it in 16 bit, or use FP8")


def attention_type(context: LintContext) -> Iterator[Finding]:
    for attention in _large(context):
        dtype = attention.scores.outputs[0].dtype
        if dtype == ir.DataType.FLOAT:
            fault = f"its attention is {dtype_name(dtype)}, which has no fused kernel: {_cost(context, attention)}"
            yield Finding("attention-type", attention.name, fault, "use an fp16 or bf16 base (--base)")


def attention_shape(context: LintContext) -> Iterator[Finding]:
    """What else keeps an attention from fusing: its scores read twice, or a softmax along another axis."""
    for attention in _large(context):
        axis, rank = attention.softmax.attributes.get_int("axis", -1), _rank(attention.softmax)
        if len(list(attention.softmax.outputs[0].consumers())) > 1:
            fault = f"its softmax is read by more than one node: {_cost(context, attention)}"
            yield Finding("attention-shape", attention.name, fault, "let only the product with V read it")
        elif axis not in (-1, rank - 1):
            fault = f"its softmax runs along axis {axis}, not the last: {_cost(context, attention)}"
            yield Finding("attention-shape", attention.name, fault, "transpose so that keys come last")


def _large(context: LintContext) -> Iterator[Attention]:
    for attention in context.attentions:
        # Scores of fewer bytes are a matter of speed, not of whether it runs at all.
        if _bytes(context, attention) >= TELLING_SCORES:
            yield attention


def _bytes(context: LintContext, attention: Attention) -> int:
    return 2 * (context.elements(attention.scores.outputs[0]) or 0)


def _cost(context: LintContext, attention: Attention) -> str:
    return f"it would not fuse, and hold {_bytes(context, attention) / 1e9:.1f} GB of scores"


def _operands(attention: Attention) -> dict[str, ir.Value | None]:
    return {
        "Q": attention.scores.inputs[0],
        "K": attention.scores.inputs[1],
        "V": attention.mix.inputs[1],
        "softmax": attention.mix.inputs[0],
    }


def _format(value: ir.Value | None) -> ir.DataType | None:
    source = quantized_source(value)
    return source.dtype if source is not None else None


def _rank(node: ir.Node) -> int:
    shape = node.outputs[0].shape
    return shape.rank() if shape is not None else 0
