"""Store a graph's weights in fewer bits than it computes with: bf16 with a Cast, or INT8 with a DequantizeLinear.

    x ─────────────────────────────→ MatMul        x ───────────────────────────────────→ MatMul
    bf16 weight [K, N] → Cast → float32 ↗           INT8 weight [K, N], scale [N] → DQ → float32 ↗

Activations stay as they are, so nothing is calibrated. Tables that are looked up (embeddings) become bf16 in both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from reelquant.quant.formats import INT8, PerChannel
from reelquant.quant.graph.linears import linear_nodes
from reelquant.quant.methods.primitives import Floats, dequantize, quantize, weight_scales
from reelquant.runtime.bundle.support import BASES, Support

STORAGES = ("fp32", "bf16", "int8")
# What a manifest calls them; tables are in bf16 beside INT8 too.
FORMATS: dict[str, dict[str, Support]] = {
    "fp32": {},
    "bf16": {"bf16_weight": BASES["bf16"]},
    "int8": {"int8_weight": Support(), "bf16_weight": BASES["bf16"]},
}
_BF16 = np.dtype(ml_dtypes.bfloat16)
# Smaller tables (T5's position buckets) save nothing.
LEAST_TABLE = 1 << 16


def storage_of(formats: Collection[str]) -> str:
    """Of a component with these formats."""
    return next(storage for storage in ("int8", "bf16", "fp32") if FORMATS[storage].keys() <= set(formats))


def store_weights(model: ir.Model, storage: str) -> dict[str, int]:
    """Store, in place, every linear's weight and every large table as ``storage`` says; return how many of both.

    Values are rounded when the model is saved, one weight at a time. ``"fp32"`` changes nothing.

    Raises:
        ValueError: unknown ``storage``, or a weight has an infinity or NaN.
    """
    if storage not in STORAGES:
        raise ValueError(f"unknown storage {storage!r}; one of {', '.join(STORAGES)}")
    counts = {"linears": 0, "tables": 0}
    if storage == "fp32":
        return counts
    done: dict[str, ir.Value] = {}
    for linear in linear_nodes(model):
        if linear.weight not in done:
            make = _bf16_weight if storage == "bf16" else _int8_weight
            done[linear.weight] = make(model.graph, model.graph.initializers[linear.weight], linear.node)
            counts["linears"] += 1
        linear.node.replace_input_with(1, done[linear.weight])
    for node in list(model.graph):
        table = node.inputs[0] if node.op_type == "Gather" else None
        if table is None or not table.is_initializer() or table.const_value is None:
            continue
        if table.const_value.dtype == ir.DataType.FLOAT and table.const_value.size >= LEAST_TABLE:
            _bf16_table(model.graph, node, table)
            counts["tables"] += 1
    for name in done:
        if not model.graph.initializers[name].uses():
            del model.graph.initializers[name]
    return counts


def rounded(weight: NDArray[np.float32], storage: str, table: bool = False) -> Floats:
    """The float32 values that a stored weight has: of a linear [N, K] (as torch keeps it), or of a table."""
    if storage == "fp32":
        return weight
    if storage == "bf16" or table:
        return weight.astype(_BF16).astype(np.float32)
    scales = weight_scales(weight, INT8, PerChannel(0))
    return dequantize(quantize(weight, scales, INT8, 0), scales, 0)


def _int8_weight(graph: ir.Graph, value: ir.Value, reader: ir.Node) -> ir.Value:
    name, tensor = f"{value.name}_int8", _tensor(value)
    scales = weight_scales(tensor.numpy(), INT8, PerChannel(1))

    def values() -> NDArray[np.int8]:
        return quantize(tensor.numpy(), scales, INT8, 1)

    stored = _store(graph, name, values, ir.DataType.INT8, tensor.shape)
    scale = ir.val(f"{name}_scale", const_value=ir.tensor(scales, name=f"{name}_scale"))
    graph.register_initializer(scale)
    again = ir.val(f"{name}_dequantized", ir.DataType.FLOAT, value.shape)
    graph.insert_before(
        reader, ir.node("DequantizeLinear", [stored, scale], {"axis": 1}, outputs=[again], name=again.name)
    )
    return again


def _bf16_weight(graph: ir.Graph, value: ir.Value, reader: ir.Node) -> ir.Value:
    stored = _as_bf16(graph, value)
    again = ir.val(f"{stored.name}_float", ir.DataType.FLOAT, value.shape)
    graph.insert_before(reader, _to_float(stored, again))
    return again


def _bf16_table(graph: ir.Graph, gather: ir.Node, table: ir.Value) -> None:
    """Gather(float32 table) → Cast(Gather(bf16 table)): only the rows that are read are converted."""
    found, again = gather.outputs[0], ir.val(f"{gather.outputs[0].name}_float", ir.DataType.FLOAT)
    again.shape = found.shape
    ir.convenience.replace_all_uses_with(found, again, replace_graph_outputs=True)
    gather.replace_input_with(0, _as_bf16(graph, table))
    found.dtype = ir.DataType.BFLOAT16
    graph.insert_after(gather, _to_float(found, again))
    if not table.uses():
        del graph.initializers[table.name or ""]


def _as_bf16(graph: ir.Graph, value: ir.Value) -> ir.Value:
    name, tensor = f"{value.name}_bf16", _tensor(value)
    if name in graph.initializers:
        return graph.initializers[name]
    return _store(graph, name, lambda: tensor.numpy().astype(_BF16), ir.DataType.BFLOAT16, tensor.shape)


def _to_float(source: ir.Value, result: ir.Value) -> ir.Node:
    return ir.node("Cast", [source], {"to": ir.DataType.FLOAT.value}, outputs=[result], name=result.name)


def _store(
    graph: ir.Graph, name: str, values: Callable[[], NDArray[np.generic]], dtype: ir.DataType, shape: ir.ShapeProtocol
) -> ir.Value:
    lazy = ir.LazyTensor(partial(_made, values, name), dtype, ir.Shape(shape.numpy()), name=name)
    stored = ir.val(name, const_value=lazy)
    graph.register_initializer(stored)
    return stored


def _made(values: Callable[[], NDArray[np.generic]], name: str) -> ir.TensorProtocol:
    return ir.tensor(values(), name=name)


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value
