"""Find the attentions of a traced transformer: MatMul–Softmax–MatMul, which FP8 kernels compute as one."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from reelquant.quant.graph.linears import before_qdq


@dataclass(frozen=True)
class Attention:
    """softmax(Q·Kᵀ)·V. ``scores`` and ``mix`` are its two MatMul; Q comes scaled and K transposed.

    ``query``, ``key``, ``value`` and ``weights`` (the softmax's output) are value names, seen through any Q/DQ.
    """

    name: str
    scores: ir.Node
    softmax: ir.Node
    mix: ir.Node
    query: str
    key: str
    value: str
    weights: str


def attention_nodes(model: ir.Model) -> list[Attention]:
    """Every attention of the main graph, in graph order. Its name is its module's: ``transformer_blocks.7.attn1``."""
    found = (_attention(node) for node in model.graph if node.op_type == "Softmax")
    return [attention for attention in found if attention is not None]


def _attention(softmax: ir.Node) -> Attention | None:
    scores = _producer(softmax.inputs[0])
    # Between the products and the softmax, a scale or a bias may stand.
    while scores is not None and scores.op_type in ("Mul", "Div", "Add", "Cast"):
        scores = _producer(scores.inputs[0])
    mix = _product(softmax.outputs[0])
    if scores is None or mix is None or scores.op_type != "MatMul":
        return None
    query, key, value = scores.inputs[0], scores.inputs[1], mix.inputs[1]
    if query is None or key is None or value is None or key.is_initializer() or value.is_initializer():
        return None
    return Attention(
        name=(softmax.name or "").removesuffix("/Softmax"),
        scores=scores,
        softmax=softmax,
        mix=mix,
        query=before_qdq(query).name or "",
        key=before_qdq(key).name or "",
        value=before_qdq(value).name or "",
        weights=softmax.outputs[0].name or "",
    )


def _producer(value: ir.Value | None) -> ir.Node | None:
    return value.producer() if value is not None else None


def _product(value: ir.Value) -> ir.Node | None:
    """The MatMul whose first input is ``value``, through Cast and Q/DQ if need be."""
    for user, index in value.uses():
        if user.op_type == "MatMul" and index == 0:
            return user
        if user.op_type in ("Cast", "QuantizeLinear", "DequantizeLinear") and index == 0:
            found = _product(user.outputs[0])
            if found is not None:
                return found
    return None
