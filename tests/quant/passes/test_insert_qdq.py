"""Quantized graphs on both engines against a simulation in numpy that shares no code with the pass."""

from __future__ import annotations

from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from reelquant.quant.calibration.ranges import Ranges
from reelquant.quant.graph.attentions import attention_nodes
from reelquant.quant.graph.graph_stats import graph_stats
from reelquant.quant.graph.linears import linear_nodes
from reelquant.quant.passes.insert_qdq import insert_qdq
from reelquant.quant.recipe import Recipe
from reelquant.runtime.errors import BadInput, BundleError
from tests.quant.engines import EACH_ENGINE, run
from tests.quant.tiny import BLOCKS, DIM, INNER, SHAPES, Array, feeds, forward, is_gemm, model, parameters, ranges_of

EACH_FORMAT = pytest.mark.parametrize("format", ["int8", "fp8"])
QUANTIZED = {name for name in SHAPES if ".attn1." in name or ".ff." in name}
MODULATION = {
    name for name in SHAPES if ".norm1." in name or ".norm2." in name
}  # whose weights alone are stored in FP8
ATTENTIONS = [f"transformer_blocks.{i}.attn1" for i in range(BLOCKS)]
EVERYTHING = 'name="all"\ndescription="every linear"\nrules=[{{match="*", numerics="{}"}}]'

# Root mean square of the error, relative to the output's.
# simulated: an engine against the numpy simulation. 2e-7 where no value lies within float32's error of a rounding
#     boundary; one that does, and falls to the other side, costs about 5e-6.
# engines: one engine against the other. FP8 differs because OpenVINO rounds twice (see `simulated`).
# least, float: against the unquantized model, what 8 bit costs; a graph that did not quantize would stay under "least".
TOLERANCE = {
    "int8": {"simulated": 1e-4, "engines": 1e-4, "least": 1e-2, "float": 4e-2},
    "fp8": {"simulated": 1e-4, "engines": 5e-2, "least": 2e-2, "float": 1e-1},
}


def error(found: Array, expected: Array) -> float:
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


def to_e4m3(x: Array) -> Array:
    """The nearest E4M3 value, ties to even, by arithmetic: three bits of mantissa, exponents from -6 to 8."""
    exponent = np.clip(np.frexp(x)[1] - 1, -6, 8)
    step = np.ldexp(1.0, exponent - 3)
    return np.asarray(np.clip(np.rint(x / step) * step, -448, 448))


def simulated(x: Array, absmax: Array | float, format: str, engine: str = "") -> Array:
    """``x`` after Q and DQ with the scale for ``absmax``."""
    scale = np.float32(absmax) / np.float32(127 if format == "int8" else 448)
    steps = (x / scale).astype(np.float32).astype(np.float64)
    if format == "int8":
        return np.asarray(np.clip(np.rint(steps), -128, 127) * scale)
    if engine == "openvino":
        # OpenVINO 2026.4 on the CPU emulates FP8 by way of float16, so it rounds twice.
        steps = np.clip(steps, -60000, 60000).astype(np.float16).astype(np.float64)
    return np.asarray(to_e4m3(steps) * scale)


def per_channel(weight: Array, format: str) -> Array | float:
    return np.asarray(np.abs(weight).max(0)) if format == "int8" else float(np.abs(weight).max())


def calibrated(weights: dict[str, Array], fed: dict[str, Array]) -> tuple[Ranges, dict[str, float]]:
    """Ranges by activation name, as calibration would find them, and absolute maxima by linear name.

    Maxima of an attention's operands are by its name and the operand's: ``transformer_blocks.0.attn1.q``.
    """
    seen: dict[str, Array] = {}

    def multiply(name: str, x: Array, weight: Array) -> Array:
        seen[name] = x.reshape(len(x), -1).astype(np.float32)
        return x @ weight

    def operand(name: str, which: str, x: Array) -> Array:
        seen[f"{name}.{which}"] = x.reshape(len(x), -1).astype(np.float32)
        return x

    forward(weights, fed, multiply, operand)
    activation = {linear.name: linear.activation for linear in linear_nodes(model(weights))}
    for attention in attention_nodes(model(weights)):
        operands = {"q": attention.query, "k": attention.key, "v": attention.value, "p": attention.weights}
        activation |= {f"{attention.name}.{which}": name for which, name in operands.items()}
    ranges = ranges_of(
        {activation[name]: x.min(1) for name, x in seen.items()},
        {activation[name]: x.max(1) for name, x in seen.items()},
    )
    return ranges, {name: float(np.abs(x).max()) for name, x in seen.items()}


@EACH_ENGINE
@EACH_FORMAT
def test_a_quantized_transformer_computes_the_simulation(tmp_path: Path, engine: str, format: str) -> None:
    weights, fed = parameters(), feeds()
    ranges, absmax = calibrated(weights, fed)

    def multiply(name: str, x: Array, weight: Array) -> Array:
        if name in MODULATION and format == "fp8":
            return x @ simulated(weight.astype(np.float32), np.abs(weight).max(0), format)
        if name not in QUANTIZED:
            return x @ weight
        fake = simulated(weight.astype(np.float32), per_channel(weight, format), format)
        return simulated(x, absmax[name], format, engine) @ fake

    def operand(name: str, which: str, x: Array) -> Array:
        largest = 1.0 if which == "p" else absmax[f"{name}.{which}"]
        return simulated(x, largest, format, engine) if format == "fp8" else x

    graph = model(weights)
    insert_qdq(graph, ranges, Recipe.load(f"{format}-minmax"))
    found = run(graph, engine, fed, tmp_path)["out"]
    tolerance = TOLERANCE[format]
    assert error(found, forward(weights, fed, multiply, operand)) < tolerance["simulated"]
    plain = forward(weights, fed, lambda _, x, weight: x @ weight)
    assert tolerance["least"] < error(found, plain) < tolerance["float"]


@EACH_FORMAT
def test_the_engines_agree(tmp_path: Path, format: str) -> None:
    weights, fed = parameters(2), feeds(3)
    ranges, _ = calibrated(weights, fed)
    graph = model(weights)
    insert_qdq(graph, ranges, Recipe.load(f"{format}-minmax"))
    found = {engine: run(graph, engine, fed, tmp_path)["out"] for engine in ("onnxruntime", "openvino")}
    assert error(found["openvino"], found["onnxruntime"]) < TOLERANCE[format]["engines"]


def test_openvino_multiplies_in_int8(tmp_path: Path) -> None:
    """Q/DQ that it cannot fuse would compute the same numbers, slowly."""
    weights = parameters()
    graph = model(weights)
    insert_qdq(graph, calibrated(weights, feeds())[0], Recipe.load("int8-minmax"))
    ir.save(graph, tmp_path / "graph.onnx", external_data="weights.bin")
    core = import_module("openvino").Core()  # imported so, because it has no types
    compiled = core.compile_model(tmp_path / "graph.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    facts = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ordered_ops()]
    linears = [fact for fact in facts if fact["layerType"].astype(str) == "FullyConnected"]
    kernels = Counter(fact["primitiveType"].astype(str).lower().rpartition("_")[2] for fact in linears)
    assert kernels == {"i8": len(QUANTIZED), "f32": len(SHAPES) - len(QUANTIZED)}


@EACH_ENGINE
@pytest.mark.parametrize("numerics", ["int8", "fp8", "fp8_per_channel"])
@pytest.mark.parametrize("op", ["MatMul", "Gemm", "Gemm transB"])
def test_one_linear_is_exact_also_beyond_its_range(tmp_path: Path, engine: str, numerics: str, op: str) -> None:
    format = numerics.removesuffix("_per_channel")
    rng = np.random.default_rng(5)
    weight = (rng.normal(0, 1, (48, 32)) * np.exp(rng.normal(0, 1, 32))).astype(np.float32)
    weight[:, 3] = 0
    x = rng.normal(0, 2, (64, 48)).astype(np.float32)
    absmax = 3.0  # a seventh of the values lie beyond
    stored = weight.T.copy() if op == "Gemm transB" else weight
    graph = _one_linear(op, stored)
    report = insert_qdq(graph, ranges_of({"x": np.full(2, -absmax, np.float32)}, {"x": np.ones(2, np.float32)}),
                        Recipe.parse(EVERYTHING.format(numerics)))  # fmt: skip
    assert report.counts() == dict.fromkeys(report.counts(), 0) | {"quantized": 1, "activations": 1}

    largest = np.where(np.abs(weight).max(0) == 0, 127, np.abs(weight).max(0))
    fake = simulated(weight, per_channel(weight, format) if numerics == "fp8" else largest, format)
    expected = simulated(x, absmax, format, engine) @ fake
    found = run(graph, engine, {"x": x}, tmp_path)["y"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    assert np.abs(expected - x @ weight).max() > 1e-2 * np.abs(expected).max()


def _one_linear(op: str, weight: Array) -> ir.Model:
    x, y = ir.val("x", ir.DataType.FLOAT, ["rows", 48]), ir.val("y", ir.DataType.FLOAT, ["rows", 32])
    stored = ir.val("layer.weight", const_value=ir.tensor(weight, name="layer.weight"))
    attributes = {"transB": int(op == "Gemm transB")} if op != "MatMul" else {}
    node = ir.node(op.split()[0], [x, stored], attributes, outputs=[y], name="layer")
    return ir.Model(ir.Graph([x], [y], nodes=[node], initializers=[stored], opset_imports={"": 23}), ir_version=10)


@EACH_FORMAT
def test_every_linear_is_counted(format: str) -> None:
    weights = parameters()
    graph = model(weights)
    report = insert_qdq(graph, calibrated(weights, feeds())[0], Recipe.load(f"{format}-minmax"))
    # Per block 6 of 8 linears; q, k and v share an activation, to_out and the two of ff have their own. An FP8 attention
    # has four operands, and FP8's modulation is stored in 8 bit.
    fp8 = format == "fp8"
    assert report.counts() == {
        "quantized": 12,
        "weight_only": 4 * fp8,
        "kept_high": 8 - 4 * fp8,
        "attentions": 2 * fp8,
        "skipped": 0,
        "activations": 8 + 8 * fp8,
    }
    stored = QUANTIZED | (MODULATION if fp8 else set())
    assert set(report.quantized) == QUANTIZED and set(report.kept_high) == SHAPES.keys() - stored
    assert report.attentions == (ATTENTIONS if fp8 else [])
    assert report.families["transformer_blocks.*.ff.net.0.proj"] == Counter(quantized=2)
    assert report.families["transformer_blocks.*.norm1.linear"] == Counter({"weight_only" if fp8 else "kept_high": 2})
    assert sum(sum(fates.values()) for fates in report.families.values()) == len(SHAPES) + 2 * fp8
    stats = graph_stats(graph)
    assert (stats["linears"], stats["quantized_linears"]) == (len(SHAPES), len(QUANTIZED))
    assert (stats["weight_only_linears"], stats["quantized_attentions"]) == (4 * fp8, 2 * fp8)
    ops = Counter(node.op_type for node in graph.graph)
    pairs = 8 + 8 * fp8
    assert (ops["QuantizeLinear"], ops["DequantizeLinear"]) == (pairs, pairs + 6 * BLOCKS + 4 * fp8)


@EACH_FORMAT
def test_small_linears_are_skipped_with_a_reason(format: str) -> None:
    weights = parameters()
    graph = model(weights)
    report = insert_qdq(graph, calibrated(weights, feeds())[0], Recipe.parse(EVERYTHING.format(format)))
    skipped = {"proj_out": "32×8 has a side under 16"}
    if format == "int8":
        skipped |= dict.fromkeys(ATTENTIONS, "no engine fuses a int8 attention at video lengths")
    assert report.skipped == skipped
    assert report.counts()["quantized"] == graph_stats(graph)["quantized_linears"] == len(SHAPES) - 1
    assert report.families["proj_out"] == Counter(skipped=1)


@EACH_ENGINE
@EACH_FORMAT
def test_every_linear_quantized_runs(tmp_path: Path, engine: str, format: str) -> None:
    """AdaLN and embeddings too: Gemms with [N, K] weights, one of which reads a graph input."""
    weights, fed = parameters(), feeds()
    graph = model(weights, opset=21)
    insert_qdq(graph, calibrated(weights, fed)[0], Recipe.parse(EVERYTHING.format(format)))
    found = run(graph, engine, fed, tmp_path)["out"]
    plain = forward(weights, fed, lambda _, x, weight: x @ weight)
    assert TOLERANCE[format]["least"] < error(found, plain) < 2 * TOLERANCE[format]["float"]


@EACH_FORMAT
def test_weights_are_stored_in_eight_bit(tmp_path: Path, format: str) -> None:
    weights = parameters()
    graph = model(weights)
    ir.save(graph, tmp_path / "before.onnx", external_data="before.bin")
    graph = ir.load(tmp_path / "before.onnx")
    insert_qdq(graph, calibrated(weights, feeds())[0], Recipe.load(f"{format}-minmax"))
    ir.save(graph, tmp_path / "after.onnx", external_data="after.bin")

    stored = QUANTIZED | (MODULATION if format == "fp8" else set())
    count = sum(SHAPES[name][0] * SHAPES[name][1] for name in stored)
    assert count == BLOCKS * (4 * DIM**2 + 2 * DIM * INNER + (4 * DIM**2 if format == "fp8" else 0))
    saved = (tmp_path / "before.bin").stat().st_size - (tmp_path / "after.bin").stat().st_size
    assert saved == 3 * count
    again = ir.load(tmp_path / "after.onnx")
    dtype = ir.DataType.INT8 if format == "int8" else ir.DataType.FLOAT8E4M3FN
    for linear in linear_nodes(again):
        value = again.graph.initializers[linear.weight]
        assert linear.shape == SHAPES[linear.name]
        assert value.dtype == (dtype if linear.name in stored else ir.DataType.FLOAT)
        if linear.name not in QUANTIZED:
            continue
        dequantizer = linear.node.inputs[1].producer()  # type: ignore[union-attr]
        assert dequantizer is not None and dequantizer.op_type == "DequantizeLinear"
        tensor, scale, zero = (v.const_value.numpy() for v in dequantizer.inputs)  # type: ignore[union-attr]
        assert tensor.nbytes == SHAPES[linear.name][0] * SHAPES[linear.name][1]
        assert scale.dtype == np.float32 and zero.shape == scale.shape and not zero.astype(np.float32).any()
        weight = weights[f"{linear.name}.weight"]
        fake = simulated(weight, per_channel(weight, format), format)
        np.testing.assert_allclose(tensor.astype(np.float64) * scale, fake, rtol=1e-6)
        zero_name = dequantizer.inputs[2].name  # type: ignore[union-attr]
        assert str(zero_name).startswith(f"{format}_zero_point")
    names = set(again.graph.initializers)
    assert not names & {f"{name}.weight" for name in stored}
    assert {f"{name}.bias" for name in SHAPES} <= names
    assert all(again.graph.initializers[f"{name}.bias"].dtype == ir.DataType.FLOAT for name in SHAPES)


def test_a_weight_that_another_node_reads_keeps_its_float_values() -> None:
    weights = parameters()
    graph = model(weights)
    name = "transformer_blocks.0.attn1.to_q"
    weight = graph.graph.initializers[f"{name}.weight"]
    also = ir.node("ReduceMax", [weight], {"keepdims": 0})
    graph.graph.append(also)
    insert_qdq(graph, calibrated(weights, feeds())[0], Recipe.load("int8-minmax"))
    assert graph.graph.initializers[f"{name}.weight"] is weight
    assert "transformer_blocks.1.attn1.to_q.weight" not in graph.graph.initializers


def test_tied_weights_are_stored_once() -> None:
    weights = parameters()
    graph = model(weights)
    one, two = (f"transformer_blocks.{i}.attn1.to_q" for i in range(2))
    nodes = {node.name: node for node in graph.graph}
    nodes[two].replace_input_with(1, nodes[one].inputs[1])
    insert_qdq(graph, calibrated(weights, feeds())[0], Recipe.load("int8-minmax"))
    assert nodes[one].inputs[1] is nodes[two].inputs[1]
    assert graph_stats(graph)["quantized_linears"] == len(QUANTIZED)


def test_ranges_of_another_graph_are_refused() -> None:
    weights = parameters()
    graph = model(weights)
    ranges, _ = calibrated(weights, feeds())
    missing = linear_nodes(graph)[6].activation
    short: dict[str, Any] = {name: values for name, values in ranges.low.items() if name != missing}
    with pytest.raises(BadInput, match=f"ranges miss 1 activations of this graph, such as '{missing}'"):
        insert_qdq(graph, ranges_of(short, {name: ranges.high[name] for name in short}), Recipe.load("int8-minmax"))
    assert graph_stats(graph)["quantized_linears"] == 0


def test_what_cannot_be_quantized_is_refused_before_any_change() -> None:
    weights = parameters()
    ranges, _ = calibrated(weights, feeds())
    recipe = Recipe.load("int8-minmax")
    with pytest.raises(BundleError, match="opset 20, and Q/DQ needs 21"):
        insert_qdq(model(weights, opset=20), ranges, recipe)
    with pytest.raises(BadInput, match="'transformer_blocks.9.\\*' matches no linear"):
        rules = 'rules=[{match="transformer_blocks.9.*", numerics="int8"}]'
        insert_qdq(model(weights), ranges, Recipe.parse(f'name="x"\ndescription="x"\n{rules}'))
    graph = model(weights)
    insert_qdq(graph, ranges, recipe)
    with pytest.raises(BadInput, match="attn1.to_q is already quantized"):
        insert_qdq(graph, ranges, recipe)
    name = "transformer_blocks.1.ff.net.2.weight"
    with pytest.raises(BundleError, match=f"{name} is FLOAT16, not FLOAT"):
        insert_qdq(model(weights | {name: weights[name].astype(np.float16)}), ranges, recipe)
    broken = weights[name].copy()
    broken[3, 4] = np.nan
    with pytest.raises(BundleError, match=f"cannot quantize {name}"):
        insert_qdq(model(weights | {name: broken}), ranges, recipe)


def test_gemms_of_the_tiny_model_are_gemms() -> None:
    """The tests above lean on it."""
    kinds = {linear.name: (linear.node.op_type, linear.transposed) for linear in linear_nodes(model(parameters()))}
    assert kinds == {name: ("Gemm", True) if is_gemm(name) else ("MatMul", False) for name in SHAPES}
