"""Make a graph report the range of chosen tensors, so that calibration moves two numbers per sample and no tensors."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from reelquant.quant.ranges import HIGH, LOW


def observe(model: ir.Model, tensor_names: Iterable[str]) -> int:
    """Add two outputs per tensor [batch, …], ``<name>::low`` and ``<name>::high``, both [batch]; return how many tensors.

    A name given twice, as by linears that share an activation, is observed once.

    Raises:
        ValueError: the graph computes no tensor of such a name.
    """
    graph = model.graph
    values = {value.name: value for value in graph.inputs}
    values |= {value.name: value for node in graph for value in node.outputs}
    names = list(dict.fromkeys(tensor_names))
    if unknown := [name for name in names if name not in values]:
        raise ValueError(f"the graph has no tensor named {unknown[0]!r} to observe")
    if not names:
        return 0
    # Flattened to [batch, -1] first, so that one pair of constants serves every rank.
    rows = _constant(graph, "observe_rows", [0, -1])
    axis = _constant(graph, "observe_axis", [1])
    for name in names:
        value = values[name]
        flat = ir.node("Reshape", [value, rows], name=f"{name}::rows")
        graph.append(flat)
        batch = ir.Shape(value.shape[:1] if value.shape is not None else [None])
        for suffix, op in ((LOW, "ReduceMin"), (HIGH, "ReduceMax")):
            output = ir.val(name + suffix, value.dtype, batch)
            graph.append(ir.node(op, [flat.outputs[0], axis], {"keepdims": 0}, outputs=[output], name=output.name))
            graph.outputs.append(output)
    return len(names)


def _constant(graph: ir.Graph, name: str, numbers: list[int]) -> ir.Value:
    value = ir.val(name, const_value=ir.tensor(np.array(numbers, np.int64), name=name))
    graph.register_initializer(value)
    return value
