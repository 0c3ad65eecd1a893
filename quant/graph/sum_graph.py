"""The graph that adds up what lies between two runs of a transformer, for engines that leave latents where they compute."""

from __future__ import annotations

import onnx_ir as ir

TERMS = 8
VALUES = "values"  # how many an array has: its one dimension


def sum_graph() -> bytes:
    """An ONNX file: arrays a0, …, a7 of float32 [values] and coefficients [8] → total [values], the sum of all products, and squares [1],
    the sum of the squares of its values, which is not finite where one of them is not.
    """
    shape, one = ir.Shape([VALUES]), ir.Shape([1])
    coefficients = ir.val("coefficients", ir.DataType.FLOAT, [TERMS])
    arrays = [ir.val(f"a{i}", ir.DataType.FLOAT, shape) for i in range(TERMS)]
    parts = [ir.val(f"c{i}", ir.DataType.FLOAT, one) for i in range(TERMS)]
    split = ir.node("Split", [coefficients], attributes={"axis": 0, "num_outputs": TERMS}, outputs=parts)
    nodes, sums = [split], []
    for array, part in zip(arrays, parts, strict=True):
        nodes.append(ir.node("Mul", [array, part]))
        sums.append(nodes[-1].outputs[0])
        if len(sums) == 2:
            nodes.append(ir.node("Add", sums))
            sums = [nodes[-1].outputs[0]]
    total = nodes[-1].outputs[0]
    total.name, total.type, total.shape = "total", ir.TensorType(ir.DataType.FLOAT), shape
    squared = ir.node("Mul", [total, total])
    squares = ir.val("squares", ir.DataType.FLOAT, one)
    nodes += [squared, ir.node("ReduceSum", [squared.outputs[0]], attributes={"keepdims": 1}, outputs=[squares])]
    graph = ir.Graph([coefficients, *arrays], [total, squares], nodes=nodes, opset_imports={"": 20}, name="sum")
    return bytes(ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString())
