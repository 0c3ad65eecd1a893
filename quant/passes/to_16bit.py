"""Compute in 16 bit: a float32 graph becomes a strongly typed fp16 or bf16 one, as TensorRT wants it.

Every float value is 16 bit, but for what loses its meaning there and costs nothing in float32: angles and their sine
and cosine (timesteps up to 999 have no bf16 neighbours), and the mean square of T5's norms. diffusers and transformers
keep the same in float32 when they run in 16 bit. Inputs and outputs stay float32, since hosts have no bf16; a stream's
caches, which never leave the device, are 16 bit.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from functools import partial

import ml_dtypes
import numpy as np
import onnx_ir as ir

from reelquant.runtime.errors import BundleError

DTYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_FLOAT = ir.DataType.FLOAT
# Computed in float32, and with them what only joins or shifts their results.
_WIDE = frozenset({"Sin", "Cos", "Pow", "ReduceMean", "Sqrt", "Reciprocal"})
_CARRYING = frozenset({"Add", "Mul", "Div", "Concat", "Slice", "Unsqueeze", "Squeeze", "Reshape"})
# Inputs that ONNX wants in float32 whatever the data's dtype.
_ALWAYS_FLOAT = {"Resize": {1, 2}}


def to_16bit(model: ir.Model, precision: str) -> dict[str, int]:
    """Turn ``model`` into ``precision`` ("fp16" or "bf16"), in place; return how many nodes stayed wide, and the casts.

    Weights are rounded when the model is saved, one at a time.

    Raises:
        BundleError: a weight is beyond fp16's range; the message names it.
    """
    caster = _Caster(model.graph, DTYPES[precision])
    wide = _wide_nodes(model.graph)
    nodes = list(model.graph)
    for node in nodes:
        for value in node.outputs:
            if value.dtype == _FLOAT and node not in wide:
                value.dtype = caster.dtype
        for key in ("to", "output_dtype") if node not in wide else ():
            if key in node.attributes and node.attributes.get_int(key) == _FLOAT:
                node.attributes[key] = ir.AttrInt64(key, caster.dtype)
    for value in model.graph.inputs:
        if value.dtype == _FLOAT and (value.name or "").startswith("cache."):
            value.dtype = caster.dtype
    for node in nodes:
        for i, read in enumerate(node.inputs):
            if read is None or read.dtype not in (_FLOAT, caster.dtype):
                continue
            wanted = _FLOAT if node in wide or i in _always_float(node) else caster.dtype
            if read.dtype != wanted:
                node.replace_input_with(i, caster.cast(read, wanted, node))
    for i, output in enumerate(model.graph.outputs):
        if output.dtype == caster.dtype and not (output.name or "").startswith("next_cache."):
            caster.restore_output(i, output)
    caster.remove_unused()
    return {"wide_nodes": len(wide), "casts": caster.casts}


def _wide_nodes(graph: ir.Graph) -> set[ir.Node]:
    wide: set[ir.Node] = set()
    for node in graph:
        sources = [value.producer() for value in node.inputs if value is not None and _computed(value)]
        joins = node.op_type in _CARRYING and bool(sources) and all(source in wide for source in sources)
        if (node.op_type in _WIDE or joins) and any(value.dtype == _FLOAT for value in node.outputs):
            wide.add(node)
    # What angles are made of: everything before a sine.
    pending = [node for node in wide if node.op_type in ("Sin", "Cos")]
    while pending:
        for value in pending.pop().inputs:
            source = value.producer() if value is not None else None
            if source is not None and source not in wide and any(v.dtype == _FLOAT for v in source.outputs):
                wide.add(source)
                pending.append(source)
    return wide


def _always_float(node: ir.Node) -> AbstractSet[int]:
    """The numbers of such inputs; TensorRT's operators that find scales while they run read the whole tensor's in float32."""
    return {1} if node.op_type.endswith("DynamicQuantize") else _ALWAYS_FLOAT.get(node.op_type, frozenset())


def _computed(value: ir.Value) -> bool:
    return value.dtype == _FLOAT and not value.is_initializer()


class _Caster:
    """Makes each cast and each 16-bit weight once."""

    def __init__(self, graph: ir.Graph, dtype: ir.DataType) -> None:
        self.graph, self.dtype, self.casts = graph, dtype, 0
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._replaced: set[str] = set()

    def cast(self, value: ir.Value, dtype: ir.DataType, reader: ir.Node) -> ir.Value:
        key = (value, dtype)
        if key not in self._made:
            self._made[key] = self._weight(value) if value.is_initializer() else self._node(value, dtype, reader)
        return self._made[key]

    def restore_output(self, index: int, value: ir.Value) -> None:
        """Let output ``index`` be float32 again, under its name."""
        name, source = value.name, value.producer()
        assert source is not None
        value.name = f"{name}_{_suffix(self.dtype)}"
        again = ir.val(name, _FLOAT, value.shape)
        self.graph.append(ir.node("Cast", [value], {"to": _FLOAT.value}, outputs=[again], name=f"{name}/Cast"))
        self.graph.outputs[index] = again
        self.casts += 1

    def remove_unused(self) -> None:
        for name in self._replaced:
            if not self.graph.initializers[name].uses():
                del self.graph.initializers[name]

    def _node(self, value: ir.Value, dtype: ir.DataType, reader: ir.Node) -> ir.Value:
        result = ir.val(f"{value.name}_{_suffix(dtype)}", dtype, value.shape)
        node = ir.node("Cast", [value], {"to": dtype.value}, outputs=[result], name=f"{value.name}/Cast")
        source = value.producer()
        if source is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.insert_after(source, node)
        self.casts += 1
        return result

    def _weight(self, value: ir.Value) -> ir.Value:
        tensor = value.const_value
        assert tensor is not None and value.name is not None
        name = f"{value.name}_{_suffix(self.dtype)}"
        made: Callable[[], ir.TensorProtocol] = partial(_rounded, tensor, self.dtype, name)
        lazy = ir.LazyTensor(made, self.dtype, ir.Shape(tensor.shape.numpy()), name=name)
        stored = ir.val(name, const_value=lazy)
        self.graph.register_initializer(stored)
        self._replaced.add(value.name)
        return stored


def _rounded(tensor: ir.TensorProtocol, dtype: ir.DataType, name: str) -> ir.TensorProtocol:
    wide = tensor.numpy()
    # What a mask writes for minus infinity becomes the lowest that 16 bit has.
    limits = ml_dtypes.finfo(dtype.numpy())  # type: ignore[no-untyped-call]
    masks = np.abs(wide) == np.finfo(np.float32).max
    with np.errstate(over="ignore"):
        values = np.where(masks, np.copysign(np.float32(limits.max), wide), wide).astype(dtype.numpy())
    if (np.isinf(values.astype(np.float32)) & np.isfinite(wide)).any():
        raise BundleError(f"{tensor.name} does not fit {_suffix(dtype)}: it has values beyond its range; use bf16")
    return ir.Tensor(values, dtype, name=name)


def _suffix(dtype: ir.DataType) -> str:
    return {_FLOAT: "fp32", ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}[dtype]
