"""Balanced and compensated linears against a simulation in numpy, and what each method gains on one linear."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from reelquant.quant.graph.linears import linear_nodes, quantized_source
from reelquant.quant.passes.insert_qdq import insert_qdq
from reelquant.quant.recipe import Recipe
from reelquant.runtime.errors import BadInput
from tests.quant.engines import EACH_ENGINE, run
from tests.quant.tiny import Array, feeds, model, parameters, ranges_of
from tests.quant.tiny_ranges import calibrated

K, N = 48, 32
BALANCED = "strength = 0.8, shift = true"


def recipe(method: str, numerics: str = "int8") -> Recipe:
    text = (
        f'name = "x"\ndescription = "x"\nmethod = {{ {method} }}\nrules = [{{ match = "*", numerics = "{numerics}" }}]'
    )
    return Recipe.parse(text)


def hard() -> tuple[Array, Array, Array]:
    """An activation whose channels differ in size and centre and go together, a weight and a bias."""
    rng = np.random.default_rng(5)
    x = rng.normal(0, 1, (512, 6)) @ rng.normal(0, 1, (6, K)) + 0.5 * rng.normal(0, 1, (512, K))
    x = x * np.exp(rng.normal(0, 1, K)) + rng.normal(0, 3, K)
    return (
        x.astype(np.float32)[None],
        rng.normal(0, 1, (K, N)).astype(np.float32),
        rng.normal(0, 1, N).astype(np.float32),
    )


def one_linear(op: str, weight: Array, bias: Array | None) -> ir.Model:
    x, y = ir.val("x", ir.DataType.FLOAT, [1, "rows", K]), ir.val("y", ir.DataType.FLOAT, [1, "rows", N])
    stored = ir.val("layer.weight", const_value=ir.tensor(weight, name="layer.weight"))
    initializers = [stored]
    if bias is not None:
        initializers.append(ir.val("layer.bias", const_value=ir.tensor(bias, name="layer.bias")))
    product = y if bias is None else ir.val("product", ir.DataType.FLOAT, [1, "rows", N])
    nodes = [ir.node("MatMul", [x, stored], outputs=[product], name="layer")]
    if bias is not None:
        pair = [initializers[1], product] if op == "bias first" else [product, initializers[1]]
        nodes.append(ir.node("Add", pair, outputs=[y], name="layer/Add"))
    graph = ir.Graph([x], [y], nodes=nodes, initializers=initializers, opset_imports={"": 23})
    return ir.Model(graph, ir_version=10)


def quantized(method: str, folder: Path, numerics: str = "int8", op: str = "MatMul", bias: bool = True) -> ir.Model:
    x, weight, added = hard()
    graph = one_linear(op, weight, added if bias else None)
    ranges = calibrated(one_linear(op, weight, added if bias else None), {"x": x}, folder)
    insert_qdq(graph, ranges, recipe(method, numerics))
    return graph


def lost(graph: ir.Model, engine: str, folder: Path, bias: bool = True) -> float:
    x, weight, added = hard()
    wanted = x.astype(np.float64) @ weight + (added if bias else 0)
    found = run(graph, engine, {"x": x}, folder)["y"]
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted - wanted.mean((0, 1))))


@EACH_ENGINE
@pytest.mark.parametrize("op", ["MatMul", "bias first", "no bias"])
@pytest.mark.parametrize("method", [BALANCED, f'{BALANCED}, rounding = "gptq"', 'rounding = "gptq"', "shift = true"])
def test_what_is_stored_computes_the_product(method: str, op: str, engine: str, tmp_path: Path) -> None:
    """Bias and all: what the graph's own numbers come to, in float64."""
    bias = op != "no bias"
    graph = quantized(method, tmp_path, op=op, bias=bias)
    x, weight, added = hard()
    stored = {name: value.const_value.numpy() for name, value in graph.graph.initializers.items() if value.const_value}
    balanced = x.astype(np.float64)
    if "x_int8_balance" in stored:
        balanced = balanced * stored["x_int8_balance"] + stored["x_int8_shift"]
    scale = stored["x_int8_scale"].astype(np.float64)
    steps = np.clip(np.rint(balanced / scale), -128, 127)
    matrix = stored["layer.weight_int8"].astype(np.float64) * stored["layer.weight_int8_scale"]
    wanted = (steps * scale) @ matrix + stored["layer.bias"]
    found = run(graph, engine, {"x": x}, tmp_path)["y"]
    # A value at a rounding boundary may fall to the other side in float32.
    assert np.linalg.norm(found - wanted) < 2e-3 * np.linalg.norm(wanted)
    assert lost(graph, engine, tmp_path, bias) < 0.03
    # The mean of every output is exact: the bias takes what shift and rounding come to.
    exact = (x @ weight + (added if bias else 0)).mean((0, 1))
    assert np.abs(found.mean((0, 1)) - exact).max() < 2e-3 * np.abs(exact).max()


def test_each_method_gains(tmp_path: Path) -> None:
    found = {
        method: lost(quantized(method, tmp_path), "onnxruntime", tmp_path)
        for method in ("", "strength = 0.8", BALANCED, f'{BALANCED}, rounding = "gptq"')
    }
    plain, smoothed, balanced, best = found.values()
    assert max(smoothed, balanced) < 0.8 * plain and best < 0.9 * balanced, found


@EACH_ENGINE
@pytest.mark.parametrize("numerics", ["int8_weight", "int4_weight", "fp8_weight", "fp8", "fp8_per_channel"])
def test_compensated_weights_gain_in_every_format(numerics: str, engine: str, tmp_path: Path) -> None:
    if numerics == "int4_weight":
        pytest.importorskip("onnxruntime")
    nearest, gptq = (
        lost(quantized(f'rounding = "{rounding}"', tmp_path, numerics), engine, tmp_path)
        for rounding in ("nearest", "gptq")
    )
    if numerics == "int4_weight":  # 48 rows are no whole number of blocks of 64, so it is skipped
        assert nearest == gptq < 1e-6
    else:
        assert 0 < gptq < (0.95 if numerics.startswith("fp8") and "weight" not in numerics else 0.7) * nearest


def test_ranges_without_channels_are_refused() -> None:
    graph = model(parameters())
    names = [linear.activation for linear in linear_nodes(graph)]
    high = {name: np.ones(2, np.float32) for name in names}
    ranges = ranges_of({name: -values for name, values in high.items()}, high)
    for method, what in ((BALANCED, "channels"), ('rounding = "gptq"', "channels"), ('observer = "mse"', "histograms")):
        with pytest.raises(BadInput, match=f"the ranges miss the {what} of 1[12] activations .* calibrate again"):
            insert_qdq(graph, ranges, recipe(method))
    assert all(quantized_source(linear.node.inputs[1]) is None for linear in linear_nodes(graph))


def test_observers_set_the_scale(tmp_path: Path) -> None:
    """Below the largest value where that is an outlier."""
    x, weight, bias = hard()
    x[0, 0, 0] = 400.0
    ranges = calibrated(one_linear("MatMul", weight, bias), {"x": x}, tmp_path)
    graph = one_linear("MatMul", weight, bias)
    insert_qdq(graph, ranges, recipe('observer = "percentile"'))
    scale = graph.graph.initializers["x_int8_scale"].const_value
    assert scale is not None and float(scale.numpy()) * 127 < 200 < ranges.absmax("x")


def test_int4_in_blocks(tmp_path: Path) -> None:
    """Linears of the tiny model whose inner side is 64; those of 32 are skipped, with the reason."""
    weights, fed = parameters(), feeds()
    ranges = calibrated(model(weights), fed, tmp_path)
    graph = model(weights)
    report = insert_qdq(graph, ranges, Recipe.load("int4-weight"))
    assert report.skipped["transformer_blocks.0.attn1.to_q"] == "its inner side, 32, is not a multiple of the block's"
    name = "transformer_blocks.0.ff.net.2"
    assert name in report.weight_only
    linear = next(each for each in linear_nodes(graph) if each.name == name)
    stored = graph.graph.initializers[linear.weight]
    assert (
        stored.dtype == ir.DataType.INT4 and stored.const_value is not None and stored.const_value.nbytes == 64 * 32 / 2
    )
    plain, found = (run(each, "onnxruntime", fed, tmp_path)["out"] for each in (model(weights), graph))
    assert 1e-3 < np.linalg.norm(found - plain) / np.linalg.norm(plain) < 0.2
