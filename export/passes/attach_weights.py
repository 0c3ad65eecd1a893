"""Give a graph that was traced with fake weights the real ones: not loaded, only where to read them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import onnx_ir as ir
import torch

from reelquant.export.network import is_fake
from reelquant.export.weights import Weight


def attach_weights(model: ir.Model, weights: Mapping[str, Weight]) -> int:
    """Replace every fake initializer by one that is read from ``weights`` when it is written; return how many.

    ``weights`` go by the traced module's own names.

    Raises:
        ValueError: an initializer is fake and no weight: the trace made a constant from one.
    """
    attached = 0
    for name, value in model.graph.initializers.items():
        if not is_fake(getattr(value.const_value, "raw", None)):
            continue
        stored = weights.get(name)
        if stored is None:
            raise ValueError(f"the trace made the constant {name} from weights, which are not there while tracing")
        shape = ir.Shape(stored.shape)
        value.const_value = ir.LazyTensor(partial(_read, stored, name), ir.DataType.FLOAT, shape, name=name)
        attached += 1
    return attached


def fold_transposed_weights(model: ir.Model) -> int:
    """Store transposed what is only read transposed: ``MatMul(x, Transpose(W))`` → ``MatMul(x, W')``; return how many."""
    folded = 0
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Transpose" else None
        if source is None or not source.is_initializer() or not isinstance(source.const_value, ir.LazyTensor):
            continue
        permutation = tuple(node.attributes.get_ints("perm", tuple(reversed(range(len(source.shape or ()))))))
        tensor = source.const_value
        shape = ir.Shape([tensor.shape.numpy()[axis] for axis in permutation])
        name = f"{source.name}.T"
        result = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype))
        result.const_value = ir.LazyTensor(partial(_transposed, tensor, permutation), tensor.dtype, shape, name=name)
        if name in model.graph.initializers:
            result = model.graph.initializers[name]
        else:
            model.graph.register_initializer(result)
        ir.convenience.replace_all_uses_with(node.outputs[0], result)
        model.graph.remove(node, safe=True)
        if not source.consumers() and not source.is_graph_output():
            model.graph.initializers.pop(source.name or "")
        folded += 1
    return folded


def _read(stored: Weight, name: str) -> ir.TensorProtocol:
    return ir.Tensor(stored.read(), name=name)


def _transposed(tensor: ir.LazyTensor, permutation: tuple[int, ...]) -> ir.TensorProtocol:
    # torch, whose copy takes every core.
    return ir.Tensor(torch.from_numpy(tensor.numpy()).permute(permutation).contiguous().numpy())
