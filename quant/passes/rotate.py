"""Rotate what attention hands on, at no cost: a Hadamard matrix goes into to_v, and its inverse into to_out.

    softmax(Q·Kᵀ)·(V·H) = (softmax(Q·Kᵀ)·V)·H,   and   (x·H)·(Hᵀ·W) = x·W

Attention mixes tokens, never channels, so a rotation of each head's channels passes through it. It spreads a large
channel over its head (QuaRot, arXiv:2404.00456, section 4). Nowhere else in a CogVideoX block does one fold away: norms'
outputs have scales and shifts of their own, Q and K are normalised and turned by RoPE, and the GELU is not linear.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from reelquant.quant.graph.attentions import attention_nodes
from reelquant.quant.graph.linears import Linear, bias_of, linear_nodes
from reelquant.quant.methods.primitives import Floats
from reelquant.runtime.errors import BadInput

Change = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def check_head(head: int) -> None:
    """Raises:
    BadInput: heads of ``head`` channels cannot be rotated.
    """
    if head < 2 or head & (head - 1):
        raise BadInput(f"a head of {head} channels has no Hadamard matrix here; it must be a power of two")


def rotate(model: ir.Model, head: int) -> int:
    """Rotate the values of every attention of ``model`` (fp32), in place; ``head`` is the channels of one. Return how many.

    Weights are computed when the model is saved.

    Raises:
        BadInput: ``head`` is no power of two, or the graph has no attention of CogVideoX's names.
    """
    check_head(head)
    turn = hadamard(head)
    linears = {linear.name: linear for linear in linear_nodes(model)}
    attentions = attention_nodes(model)
    for attention in attentions:
        made, read = (linears.get(f"{attention.name}.{name}") for name in ("to_v", "to_out.0"))
        if made is None or read is None or made.shape[1] % head or made.shape[1] != read.shape[0]:
            raise BadInput(f"{attention.name} has no to_v and to_out.0 of whole heads of {head} channels")
        _replace(model.graph, made, lambda matrix: _columns(matrix, turn))
        _replace(model.graph, read, lambda matrix: _columns(matrix.T, turn).T)
        node, index = bias_of(made)
        bias = node.inputs[index] if node is not None else None
        if bias is not None and bias.const_value is not None:
            bias.const_value = ir.tensor(_columns(bias.const_value.numpy()[None], turn)[0], name=bias.name)
    if not attentions:
        raise BadInput("the graph has no attention to rotate")
    return len(attentions)


def hadamard(side: int) -> Floats:
    """The symmetric, orthogonal matrix [side, side] of ±1/√side (Sylvester's construction)."""
    found = np.ones((1, 1), np.float32)
    while len(found) < side:
        found = np.block([[found, found], [found, -found]]).astype(np.float32)
    return np.asarray(found / np.sqrt(side), np.float32)


def _columns(matrix: NDArray[np.float32], turn: Floats) -> Floats:
    """Every group of columns times ``turn``: [K, N] → [K, N]."""
    rows = matrix.shape[0]
    return np.ascontiguousarray((matrix.reshape(rows, -1, len(turn)) @ turn).reshape(rows, -1))


def _replace(graph: ir.Graph, linear: Linear, change: Change) -> None:
    value = graph.initializers[linear.weight]
    source = value.const_value
    assert source is not None

    def changed() -> ir.TensorProtocol:
        matrix = source.numpy()
        made = change(matrix.T).T if linear.transposed else change(matrix)
        return ir.tensor(np.ascontiguousarray(made), name=linear.weight)

    value.const_value = ir.LazyTensor(changed, source.dtype, ir.Shape(source.shape.numpy()), name=linear.weight)
