"""Attention as one node: MatMul–Softmax–MatMul becomes ONNX's ``Attention`` (opset 23), whose kernels never hold the scores.

ONNX Runtime's CUDA kernel is flash attention in 16 bit; decomposed, one attention of CogVideoX-2b at 49 frames of 480x720 asks
for 75.8 GB of scores. The numbers are the same: Q comes scaled, so the node's own scale is 1.
"""

from __future__ import annotations

import onnx_ir as ir

from reelquant.quant.graph.attentions import Attention, attention_nodes

OPSET = 23


def fuse_attention(model: ir.Model) -> list[str]:
    """Replace every attention of ``model``, in place, that has nothing between its products and its softmax; return the
    names of those replaced.

    An attention that computes in FP8 or INT8 stays: its Q/DQ stand between the products. Q, K and V are
    [batch, heads, tokens, head_dim], and so is the result.
    """
    fused = [attention.name for attention in attention_nodes(model) if _fuse(model.graph, attention)]
    if fused:
        # From 18 on, the versions of the operators that we use differ in the dtypes that they take, and in nothing else.
        model.opset_imports[""] = max(OPSET, model.opset_imports.get("", OPSET))
    return fused


def _fuse(graph: ir.Graph, attention: Attention) -> bool:
    scores, softmax, mix = attention.scores, attention.softmax, attention.mix
    transposed = scores.inputs[1].producer() if scores.inputs[1] is not None else None
    direct = softmax.inputs[0] is scores.outputs[0] and mix.inputs[0] is softmax.outputs[0]
    if not direct or transposed is None or transposed.op_type != "Transpose":
        return False
    if list(transposed.attributes.get_ints("perm")) != [0, 1, 3, 2]:
        return False
    result = mix.outputs[0]
    node = ir.node(
        "Attention",
        inputs=[scores.inputs[0], transposed.inputs[0], mix.inputs[1]],
        attributes={"scale": 1.0},
        name=f"{attention.name}/Attention",
    )
    made = node.outputs[0]
    made.name, made.shape = f"{attention.name}/attention", result.shape
    if result.dtype is not None:
        made.dtype = result.dtype
    graph.insert_after(mix, node)
    ir.convenience.replace_all_uses_with(result, made, replace_graph_outputs=True)
    leftovers = [mix, softmax, scores]
    if not transposed.outputs[0].uses() or {user for user, _ in transposed.outputs[0].uses()} == {scores}:
        leftovers.append(transposed)
    graph.remove(leftovers, safe=True)
    return True
