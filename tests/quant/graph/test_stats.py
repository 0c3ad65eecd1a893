"""Facts of a graph are read off its structure: half a quantization does not count as one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from reelquant.quant.calibration.calibrate import quantizable_values
from reelquant.quant.graph.graph_stats import graph_stats
from reelquant.quant.passes.insert_qdq import insert_qdq
from reelquant.quant.recipe import Recipe
from tests.quant.tiny import SHAPES, model, parameters, ranges_of

TARGET = "transformer_blocks.0.ff.net.2"


def quantized(recipe: str) -> ir.Model:
    graph = model(parameters())
    high = {name: np.ones(2, np.float32) for name in quantizable_values(graph)}
    insert_qdq(
        graph, ranges_of({name: -values for name, values in high.items()}, high), Recipe.load(f"{recipe}-minmax")
    )
    return graph


def test_a_float_graph_has_float_facts() -> None:
    graph, weights = model(parameters()), parameters()
    stats = graph_stats(graph)
    constants = 4 * (32 + 1)  # "one" and the attention scale
    stored = sum(array.nbytes for array in weights.values()) + constants
    assert stats["weight_bytes_by_dtype"] == {"FLOAT": stored, "INT64": 8}
    assert stats["weight_bytes"] == stored + 8
    assert (stats["nodes"], stats["linears"], stats["quantized_linears"]) == (len(graph.graph), len(SHAPES), 0)
    assert stats["values_by_dtype"] == {"FLOAT": len(graph.graph) + 5}  # five Splits have two outputs


@pytest.mark.parametrize(("recipe", "dtype"), [("int8", "INT8"), ("fp8", "FLOAT8E4M3FN")])
def test_a_quantized_graph_is_a_quarter_where_it_is_quantized(tmp_path: Path, recipe: str, dtype: str) -> None:
    before, after = graph_stats(model(parameters())), quantized(recipe)
    stats = graph_stats(after)
    parts = (".attn1.", ".ff.") if recipe == "int8" else (".attn1.", ".ff.", ".norm1.", ".norm2.")
    count = sum(np.prod(shape) for name, shape in SHAPES.items() if any(part in name for part in parts))
    # Beside the weights: zero points of one byte, a scalar and one per column of each width with a scale per channel.
    assert stats["weight_bytes_by_dtype"][dtype] == count + (1 + 32 + 64 if recipe == "int8" else 1 + 64)
    scales = stats["weight_bytes_by_dtype"]["FLOAT"] - (before["weight_bytes_by_dtype"]["FLOAT"] - 4 * count)
    # Of 8 linears' activations; for FP8 also of 2 attentions' 4 operands, 12 weights, and 4 weights' columns.
    assert scales == 4 * (8 + (2 * (5 * 32 + 64) if recipe == "int8" else 2 * 4 + 12 + 4 * 64))
    assert stats["quantized_linears"] == 12
    assert stats["values_by_dtype"][dtype] == (8 if recipe == "int8" else 16)
    ir.save(after, tmp_path / "graph.onnx", external_data="weights.bin")
    assert graph_stats(ir.load(tmp_path / "graph.onnx"))["weight_bytes"] == stats["weight_bytes"]


def _float_activation(node: ir.Node, graph: ir.Graph) -> None:
    node.replace_input_with(0, graph.inputs[0])


def _float_weight(node: ir.Node, graph: ir.Graph) -> None:
    stored = ir.val("float", const_value=ir.tensor(np.ones((64, 32), np.float32), name="float"))
    graph.register_initializer(stored)
    node.replace_input_with(1, stored)


def _something_between(node: ir.Node, graph: ir.Graph) -> None:
    between = ir.node("Identity", [node.inputs[0]])
    graph.insert_before(node, between)
    node.replace_input_with(0, between.outputs[0])


def _sixteen_bit(node: ir.Node, graph: ir.Graph) -> None:
    """Both sides, and consistently: a graph that is quantized, but not to 8 bit."""
    dequantizers = [value.producer() for value in node.inputs[:2] if value is not None]
    wide = {}
    for name, array in (("wide", np.ones((64, 32), np.int16)), ("wide_zero", np.zeros((), np.int16))):
        wide[name] = ir.val(name, const_value=ir.tensor(array, name=name))
        graph.register_initializer(wide[name])
    quantizer = dequantizers[0].inputs[0].producer()  # type: ignore[union-attr]
    dequantizers[1].replace_input_with(0, wide["wide"])  # type: ignore[union-attr]
    for reader in (*dequantizers, quantizer):
        reader.replace_input_with(2, wide["wide_zero"])  # type: ignore[union-attr]


@pytest.mark.parametrize("spoil", [_float_activation, _float_weight, _something_between, _sixteen_bit])
def test_half_a_quantization_does_not_count(spoil: Callable[[ir.Node, ir.Graph], None]) -> None:
    graph = quantized("int8")
    spoil(next(node for node in graph.graph if node.name == TARGET), graph.graph)
    stats = graph_stats(graph)
    assert (stats["linears"], stats["quantized_linears"]) == (len(SHAPES), 11)
