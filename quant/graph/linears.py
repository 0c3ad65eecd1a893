"""Find the linears of a traced transformer: what every pass of this package works on."""

from __future__ import annotations

import re
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class Linear:
    """A MatMul or Gemm whose second input is a stored matrix, quantized or not.

    ``activation`` and ``weight`` are value names, seen through any Q/DQ: the tensor that is quantized, and the
    initializer. ``shape`` is (K, N): ``[..., K] → [..., N]``; ``transposed`` says that the weight is stored [N, K].
    """

    node: ir.Node
    name: str
    activation: str
    weight: str
    shape: tuple[int, int]
    transposed: bool


def family(name: str) -> str:
    """A linear's name with its block number as ``*``: ``transformer_blocks.*.ff.net.0.proj``."""
    return re.sub(r"\.\d+\.", ".*.", name, count=1)


def linear_nodes(model: ir.Model) -> list[Linear]:
    """Every linear of the main graph, in graph order."""
    found = (_linear(node) for node in model.graph)
    return [linear for linear in found if linear is not None]


def bias_of(linear: Linear) -> tuple[ir.Node | None, int]:
    """The node and the number of its input that adds ``linear``'s bias: its own, or an Add after it; None without one."""
    if linear.node.op_type == "Gemm":
        bias = linear.node.inputs[2] if len(linear.node.inputs) > 2 else None
        return (linear.node, 2) if bias is not None and bias.is_initializer() else (None, 0)
    users = list(linear.node.outputs[0].uses())
    if len(users) == 1 and users[0].node.op_type == "Add":
        bias = users[0].node.inputs[1 - users[0].idx]
        if bias is not None and bias.is_initializer():
            return users[0].node, 1 - users[0].idx
    return None, 0


def output_of(linear: Linear) -> ir.Value:
    """The product with its bias, where it has one. Quantizing may move a part of the product into the bias."""
    node, _ = bias_of(linear)
    return (node or linear.node).outputs[0]


def quantized_source(value: ir.Value | None) -> ir.Value | None:
    """What a DequantizeLinear makes ``value`` from: an initializer or a quantizer's output. None without one."""
    producer = _dequantizer(value)
    return producer.inputs[0] if producer is not None else None


def quantizer_of(value: ir.Value | None) -> ir.Node | None:
    """The node that quantizes what ``value`` is dequantized from; None for weights, and for what is in high precision."""
    source = quantized_source(value)
    producer = source.producer() if source is not None else None
    ends = ("QuantizeLinear", "DynamicQuantize")  # ONNX's, and TensorRT's that find scales while they run
    return producer if producer is not None and producer.op_type.endswith(ends) else None


def before_qdq(value: ir.Value) -> ir.Value:
    """x of ``x → QuantizeLinear → DequantizeLinear → value``; ``value`` itself where there is no such pair."""
    quantizer = quantizer_of(value)
    if quantizer is None or quantizer.inputs[0] is None:
        return value
    steps = quantizer.inputs[0].producer()
    if _multiplied(value) is not None and steps is not None and steps.op_type == "Div":
        blocks = steps.inputs[0].producer() if steps.inputs[0] is not None else None
        if blocks is not None and blocks.op_type == "Reshape" and blocks.inputs[0] is not None:
            return blocks.inputs[0]
    return quantizer.inputs[0]


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    """DequantizeLinear, or one like it of TensorRT's; also where blocks are multiplied by their scales after it."""
    multiplied = _multiplied(value)
    producer = (multiplied if multiplied is not None else value).producer() if value is not None else None
    return producer if producer is not None and producer.op_type.endswith("DequantizeLinear") else None


def _multiplied(value: ir.Value | None) -> ir.Value | None:
    """v of ``v [..., blocks, size] → Mul (scales) → Reshape → value``, as blocks are scaled in operators of every engine."""
    joined = value.producer() if value is not None else None
    if joined is None or joined.op_type != "Reshape" or joined.inputs[0] is None:
        return None
    scaled = joined.inputs[0].producer()
    return scaled.inputs[0] if scaled is not None and scaled.op_type == "Mul" else None


def _linear(node: ir.Node) -> Linear | None:
    if node.op_type not in ("MatMul", "Gemm") or node.domain != "":
        return None
    read, factor = node.inputs[:2]
    weight = quantized_source(factor) or factor
    if read is None or weight is None or not weight.is_initializer() or read.is_initializer():
        return None
    if weight.shape is None or weight.shape.rank() != 2 or not weight.shape.is_static():
        return None
    rows, columns = weight.shape.numpy()
    transposed = node.attributes.get_int("transB", 0) == 1
    return Linear(
        node=node,
        name=node.name or "",
        activation=before_qdq(read).name or "",
        weight=weight.name or "",
        shape=(columns, rows) if transposed else (rows, columns),
        transposed=transposed,
    )
