"""What counts as a linear, and under which names passes know it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from reelquant.quant.graph.linears import family, linear_nodes
from reelquant.quant.passes.insert_qdq import insert_qdq
from reelquant.quant.recipe import Recipe
from tests.quant.tiny import SHAPES, is_gemm, model, parameters, ranges_of


def test_every_linear_and_nothing_else_is_found() -> None:
    graph = model(parameters())
    linears = {linear.name: linear for linear in linear_nodes(graph)}
    assert linears.keys() == SHAPES.keys()  # attention's own two MatMuls per block have no stored matrix
    for name, linear in linears.items():
        assert linear.node.name == name and linear.weight == f"{name}.weight"
        assert linear.shape == SHAPES[name]
        assert linear.transposed == is_gemm(name)
    assert linears["patch_embed.proj"].activation == "latents"
    assert linears["time_embedding.linear_1"].activation == "time"
    readers = {linears[f"transformer_blocks.1.attn1.{name}"].activation for name in ("to_q", "to_k", "to_v")}
    assert len(readers) == 1


def test_a_quantized_linear_keeps_its_name_shape_and_activation() -> None:
    graph = model(parameters())
    before = {linear.name: (linear.activation, linear.shape, linear.transposed) for linear in linear_nodes(graph)}
    bound = {name: np.ones(2, np.float32) for name, _, _ in before.values()}
    recipe = Recipe.parse('name="x"\ndescription="x"\nrules=[{match="*", numerics="int8"}]')
    insert_qdq(graph, ranges_of({name: -values for name, values in bound.items()}, bound), recipe)
    after = linear_nodes(graph)
    assert {linear.name: (linear.activation, linear.shape, linear.transposed) for linear in after} == before
    assert sum(linear.weight.endswith(".weight_int8") for linear in after) == len(SHAPES) - 1


def test_families_leave_out_the_block_number_only() -> None:
    families = {linear.name: family(linear.name) for linear in linear_nodes(model(parameters()))}
    assert families["transformer_blocks.1.ff.net.0.proj"] == "transformer_blocks.*.ff.net.0.proj"
    assert families["transformer_blocks.0.ff.net.2"] == "transformer_blocks.*.ff.net.2"
    assert families["transformer_blocks.1.attn1.to_out.0"] == "transformer_blocks.*.attn1.to_out.0"
    assert families["norm_out.linear"] == "norm_out.linear"


def test_products_of_two_computed_or_two_stored_matrices_are_no_linears() -> None:
    x = ir.val("x", ir.DataType.FLOAT, [32, 32])
    stored = ir.val("w", const_value=ir.tensor(np.eye(32, dtype=np.float32), name="w"))
    rows = ir.val("rows", const_value=ir.tensor(np.ones((2, 32, 32), np.float32), name="rows"))
    nodes = [ir.node("MatMul", pair, name=str(i)) for i, pair in enumerate([[x, x], [stored, stored], [x, rows]])]
    nodes.append(ir.node("MatMul", [x, stored], domain="other", name="3"))
    nodes.append(ir.node("MatMul", [x, stored], name="4"))
    outputs = [node.outputs[0] for node in nodes]
    graph = ir.Graph([x], outputs, nodes=nodes, initializers=[stored, rows], opset_imports={"": 23})
    assert [(linear.name, linear.weight) for linear in linear_nodes(ir.Model(graph, ir_version=10))] == [("4", "w")]
