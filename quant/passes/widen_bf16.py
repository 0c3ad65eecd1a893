"""bf16 for ONNX Runtime's CUDA provider: what it has no bf16 kernel of computes in float32, between casts.

These are Resize and Pad, which move values and change none, and Q/DQ, which round once more exactly so.
"""

from __future__ import annotations

import onnx_ir as ir

from reelquant.quant.lint.cuda_kernels import has_kernel, kinds_of
from reelquant.quant.passes.fuse_attention import OPSET

_HALF, _WIDE = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def widen_bf16(model: ir.Model) -> int:
    """Put casts around every node of ``model``, in place, that CUDA has a kernel of in float32 and none in bf16; return how many there are.

    A graph with bf16 values becomes one of an opset in which Conv takes them.
    """
    if not any(value is not None and value.dtype == _HALF for node in model.graph for value in node.inputs):
        return 0
    # From 18 on, the versions of the operators that we use differ in the dtypes that they take, and in nothing else.
    model.opset_imports[""] = max(OPSET, model.opset_imports.get("", OPSET))
    widened = [node for node in model.graph if _needs(node, model)]
    for node in widened:
        _widen(model.graph, node)
    return len(widened)


def _needs(node: ir.Node, model: ir.Model) -> bool:
    kinds = kinds_of(node, model.opset_imports)
    return any(
        not has_kernel("CUDA", kind) and has_kernel("CUDA", kind.of("bfloat16", "float"))
        for kind in kinds
        if len(kinds) == 1 and kind.operator == node.op_type
    )


def _widen(graph: ir.Graph, node: ir.Node) -> None:
    name = node.name or node.outputs[0].name
    for i, value in enumerate(node.inputs):
        if value is not None and value.dtype == _HALF:
            wide = ir.val(f"{name}/wide_{i}", _WIDE, value.shape)
            graph.insert_before(node, _cast(value, wide))
            node.replace_input_with(i, wide)
    if "output_dtype" in node.attributes and node.attributes.get_int("output_dtype") == _HALF:
        node.attributes["output_dtype"] = ir.AttrInt64("output_dtype", _WIDE)
    for value in node.outputs:
        if value.dtype == _HALF:
            half = ir.val(f"{value.name}/half", _HALF, value.shape)
            value.dtype = _WIDE
            ir.convenience.replace_all_uses_with(value, half, replace_graph_outputs=True)
            if half.is_graph_output():  # whose name is the graph's
                half.name, value.name = value.name, half.name
            graph.insert_after(node, _cast(value, half))


def _cast(value: ir.Value, result: ir.Value) -> ir.Node:
    assert result.dtype is not None
    return ir.node("Cast", [value], {"to": result.dtype.value}, outputs=[result], name=f"{result.name}/Cast")
