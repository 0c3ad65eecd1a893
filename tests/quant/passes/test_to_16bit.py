"""A graph in 16 bit: typed throughout, as close to float32 as 16 bit is, and 8-bit values untouched by the cast."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from reelquant.quant.graph.graph_files import load_graph, load_mapped
from reelquant.quant.lint.run import lint
from reelquant.quant.passes.insert_qdq import insert_qdq
from reelquant.quant.passes.to_16bit import DTYPES, to_16bit
from reelquant.quant.recipe import Recipe
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.registry import open_onnx
from reelquant.runtime.errors import BundleError
from reelquant.runtime.relative_l2 import relative_l2
from tests.conftest import BundleMaker
from tests.quant.passes.test_insert_qdq import calibrated
from tests.quant.tiny import feeds, forward, model, parameters

EACH_BASE = pytest.mark.parametrize("base", DTYPES)
# Relative L2 of one run: fp16 has 11 bits of mantissa, bf16 has 8.
TOLERANCE = {"fp16": 2e-3, "bf16": 2e-2}


def run(graph: ir.Model, fed: dict[str, Any], folder: Path) -> dict[str, Any]:
    ir.save(graph, folder / "graph.onnx", external_data="weights.bin")
    return open_onnx("openvino", folder / "graph.onnx", EngineOptions(threads=1)).run(
        fed
    )  # which computes bf16 graphs in float32


@EACH_BASE
def test_the_tiny_transformer_in_16_bit(tmp_path: Path, base: str) -> None:
    weights, fed = parameters(), feeds()
    graph = model(weights, opset=21)
    counts = to_16bit(graph, base)
    assert counts == {"wide_nodes": 0, "casts": 3}  # two inputs and one output
    assert {value.dtype for value in (*graph.graph.inputs, *graph.graph.outputs)} == {ir.DataType.FLOAT}
    floats = {value.dtype for node in graph.graph for value in node.outputs} - {ir.DataType.FLOAT}
    assert floats == {DTYPES[base]}
    assert Counter(value.dtype for value in graph.graph.initializers.values())[ir.DataType.FLOAT] == 0
    found = run(graph, fed, tmp_path)["out"]
    wanted = forward(weights, fed, lambda _, x, weight: x @ weight)
    assert 1e-5 < relative_l2(found, wanted) < TOLERANCE[base]


@EACH_BASE
@pytest.mark.parametrize("recipe", ["int8", "fp8"])
def test_eight_bit_values_are_those_of_the_rounded_scales(tmp_path: Path, base: str, recipe: str) -> None:
    weights = parameters()
    ranges = calibrated(weights, feeds())[0]
    before, after = model(weights, opset=21), model(weights, opset=21)
    insert_qdq(before, ranges, Recipe.load(f"{recipe}-minmax"), base)
    insert_qdq(after, ranges, Recipe.load(f"{recipe}-minmax"), base)
    to_16bit(after, base)
    for name, value in before.graph.initializers.items():
        assert value.const_value is not None
        if name.endswith("_scale"):
            cast = after.graph.initializers[f"{name}_{base}"].const_value
            assert cast is not None and cast.dtype == DTYPES[base]
            # What was quantized with in float32 is the very number that the 16-bit graph has.
            np.testing.assert_array_equal(cast.numpy().astype(np.float32), value.const_value.numpy())
        elif value.const_value.dtype in (ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN):
            again = after.graph.initializers[name].const_value
            assert again is not None and again.tobytes() == value.const_value.tobytes()


@EACH_BASE
@pytest.mark.parametrize("component", ["transformer", "text_encoder"])
def test_a_traced_network_in_16_bit(tmp_path: Path, base: str, component: str, demo_bundle: BundleMaker) -> None:
    path = demo_bundle("t2v", "fp32").graph(component, "main")
    graph = load_mapped(path)
    counts = to_16bit(graph, base)
    assert counts["wide_nodes"] >= 5
    sines = [node for node in graph.graph if node.op_type in ("Sin", "Cos", "Sqrt")]
    assert sines and all(value.dtype == ir.DataType.FLOAT for node in sines for value in node.outputs)
    assert lint(graph) == []
    rng = np.random.default_rng(0)
    sizes = {"batch": 1, "latent_frames": 3, "height": 4, "width": 6, "tokens": 24 + 3 * 6}
    fed: dict[str, Any] = {}
    for value in graph.graph.inputs:
        shape = [side if isinstance(side, int) else sizes[str(side.value)] for side in value.shape or ()]
        if value.dtype == ir.DataType.INT64:
            fed[value.name or ""] = rng.integers(0, 50, shape)
        else:
            fed[value.name or ""] = rng.normal(0, 1, shape).astype(np.float32)
    wanted = open_onnx("openvino", path, EngineOptions(threads=1)).run(fed)
    for name, found in run(graph, fed, tmp_path).items():
        # OpenVINO computes in float32: what is seen is the weights' rounding, and the demo's weights are fp16.
        assert relative_l2(found, wanted[name]) < 3 * TOLERANCE[base]


def test_a_streams_caches_are_16_bit_and_its_frames_are_not(demo_bundle: BundleMaker) -> None:
    graph = load_graph(demo_bundle("t2v", "fp32").graph("vae_decoder", "next"))
    to_16bit(graph, "fp16")
    dtypes = {value.name or "": value.dtype for value in (*graph.graph.inputs, *graph.graph.outputs)}
    caches = {name for name in dtypes if "cache." in name}
    assert len(caches) == 44 and {dtypes[name] for name in caches} == {ir.DataType.FLOAT16}
    assert dtypes["latents"] == dtypes["frames"] == ir.DataType.FLOAT


def test_a_weight_beyond_fp16_is_named_and_a_mask_is_not() -> None:
    weights = parameters()
    large = "transformer_blocks.0.ff.net.2.weight"
    spoiled = model({**weights, large: weights[large] * np.float32(1e6)}, opset=21)
    to_16bit(spoiled, "fp16")
    value = spoiled.graph.initializers[f"{large}_fp16"].const_value
    assert value is not None
    with pytest.raises(BundleError, match=f"{large} does not fit fp16: .*; use bf16"):
        value.numpy()
    name = "norm_out.linear.bias"
    masked = model({**weights, name: np.full_like(weights[name], np.finfo(np.float32).min)}, opset=21)
    to_16bit(masked, "fp16")
    mask = masked.graph.initializers[f"{name}_fp16"].const_value
    assert mask is not None and (mask.numpy() == np.finfo(np.float16).min).all()
