"""MXFP8: what is stored and computed, against a simulation block by block; and TensorRT's operators in 16 bit."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from reelquant.quant.calibration.ranges import Ranges
from reelquant.quant.graph.graph_stats import graph_stats
from reelquant.quant.graph.linears import linear_nodes
from reelquant.quant.lint.run import lint
from reelquant.quant.numerics.mxfp8 import block_exponents
from reelquant.quant.passes.insert_qdq import insert_qdq
from reelquant.quant.passes.to_16bit import to_16bit
from reelquant.quant.recipe import Recipe
from reelquant.runtime.errors import BadInput, BundleError
from tests.command_line import only_message, run
from tests.conftest import BundleMaker
from tests.quant.engines import EACH_ENGINE
from tests.quant.engines import run as run_graph
from tests.quant.passes.test_insert_qdq import MODULATION, QUANTIZED, calibrated, error
from tests.quant.tiny import SHAPES, Array, feeds, forward, model, parameters

RECIPE = Recipe.parse("""
name = "blocks"
description = "MXFP8 alone"
rules = [
    { match = "transformer_blocks.*.attn1.to_*", numerics = "mxfp8" },
    { match = "transformer_blocks.*.ff.net.*", numerics = "mxfp8" },
]
""")
BLOCK = 32


def simulated(x: Array, engine: str) -> Array:
    """``x`` [..., K] as MXFP8 holds it: every block by itself, with the least power of two that lets nothing saturate."""
    found = np.empty(x.shape)
    for place, block in enumerate(np.asarray(x, np.float64).reshape(-1, BLOCK)):
        mantissa, exponent = np.frexp(np.abs(block).max() / 448)  # 0.5 <= mantissa < 1
        scale = np.ldexp(1.0, exponent - (mantissa == 0.5))
        steps = (block / scale).astype(np.float16 if engine == "openvino" else np.float32)  # OpenVINO rounds twice
        found.reshape(-1, BLOCK)[place] = steps.astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale
    return found


def quantized(weights: dict[str, Array], ranges: Ranges, base: str = "fp32") -> ir.Model:
    graph = model(weights)
    insert_qdq(graph, ranges, RECIPE, base)
    return graph


@EACH_ENGINE
def test_a_graph_computes_the_simulation(engine: str, tmp_path: Path) -> None:
    weights, fed = parameters(), feeds()
    graph = quantized(weights, calibrated(weights, fed)[0])
    stats = graph_stats(graph)
    assert stats["quantized_linears"] == len(QUANTIZED) and stats["weight_only_linears"] == 0
    assert stats["weight_bytes_by_dtype"]["FLOAT8E4M3FN"] - 1 == sum(np.prod(SHAPES[name]) for name in QUANTIZED)
    assert {linear.name: linear.activation for linear in linear_nodes(graph)} == {
        linear.name: linear.activation for linear in linear_nodes(model(weights))
    }

    def multiply(name: str, x: Array, weight: Array) -> Array:
        return simulated(x, engine) @ simulated(weight.T, "").T if name in QUANTIZED else x @ weight

    (found,) = run_graph(graph, engine, fed, tmp_path).values()
    assert error(found, forward(weights, fed, multiply)) < 1e-4
    assert 0.01 < error(found, forward(weights, fed, lambda _, x, w: x @ w)) < 0.1


def test_scales_are_the_least_powers_of_two_that_saturate_nothing() -> None:
    weight = np.zeros((3 * BLOCK, 2), np.float32)
    weight[0], weight[BLOCK + 3], weight[2 * BLOCK] = (448, -449), (-3.5, 1e-3), (0, 2.0**-30)
    assert block_exponents(weight, BLOCK).tolist() == [[0, 1], [-7, -18], [0, -38]]


def test_in_16_bit_it_is_in_tensorrts_operators() -> None:
    weights, fed = parameters(), feeds()
    graph = quantized(weights, calibrated(weights, fed)[0], "bf16")
    to_16bit(graph, "bf16")
    stats = graph_stats(graph)
    assert stats["quantized_linears"] == len(QUANTIZED)
    assert stats["weight_bytes_by_dtype"]["UINT8"] == sum(np.prod(SHAPES[name]) // BLOCK for name in QUANTIZED)
    dynamic = [node for node in graph.graph if node.op_type == "TRT_MXFP8DynamicQuantize"]
    assert len(dynamic) == len(QUANTIZED) - 4  # q, k and v read one activation
    assert not lint(graph, ("sm120",))
    (finding,) = lint(graph, ("sm89",))
    assert finding.rule == "gpu-format" and "sm89 (Ada: L4, L40S, RTX 40) has no mxfp8; sm100" in str(finding)


def test_what_does_not_fit_blocks_stays_high() -> None:
    everything = Recipe.parse('name="all"\ndescription="all"\nrules=[{match="*", numerics="mxfp8"}]')
    weights, fed = parameters(), feeds()
    report = insert_qdq(model(weights), calibrated(weights, fed)[0], everything)
    assert MODULATION <= report.skipped.keys()  # Gemm, whose weight is stored the other way
    assert "a MatMul whose inner side is a multiple of 32" in report.skipped["transformer_blocks.0.norm1.linear"]
    assert "patch_embed.proj" in report.skipped  # 16 values are half a block


def test_a_weight_that_is_not_finite_is_refused() -> None:
    weights, fed = parameters(), feeds()
    ranges = calibrated(weights, fed)[0]
    weights["transformer_blocks.1.ff.net.2.weight"][3, 4] = np.inf
    with pytest.raises(BundleError, match=r"cannot quantize transformer_blocks.1.ff.net.2.weight: .* not a number"):
        quantized(weights, ranges)


def test_int8_is_not_mixed_with_it() -> None:
    with pytest.raises(BadInput, match="names int8 beside fp8, which no engine"):
        Recipe.parse('name="x"\ndescription="x"\nextends="mxfp8"\nrules=[{match="proj_out", numerics="int8"}]')


def test_engines_are_built_for_blackwell_alone(
    rtx_bundle: BundleMaker, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Judged beside float32 before, where a CPU computes it."""
    bundle = rtx_bundle("t2v", "mxfp8")
    records = bundle.manifest.engines["tensorrt-rtx"]["engines"]
    (transformer,) = (each for each in records if each["component"] == "transformer")
    whole = next(
        each
        for each in rtx_bundle("t2v", "fp16").manifest.engines["tensorrt-rtx"]["engines"]
        if each["component"] == "transformer"
    )
    # Half, but for the scales and for what stays in 16 bit (AdaLN's weights are in FP8 too).
    assert transformer["evidence"]["weight_bytes"] < 0.65 * whole["evidence"]["weight_bytes"]
    part = bundle.manifest.components["transformer"]
    assert part.stats["main"]["quantized_linears"] == 36 and part.compute == "fp16"
    assert part.formats["mxfp8"].gpu == 100 and not part.formats["mxfp8"].cpu
    assert bundle.manifest.quantization is not None
    assert 1e-3 < bundle.manifest.quantization["gate"]["rel_l2"] < 0.1
    ada = run(capfd, "build", bundle.path, "--engine", "tensorrt-rtx", "--gpu", "sm89", "--cache", tmp_path)
    assert ada.code == 2 and "sm89 (Ada: L4, L40S, RTX 40) has no mxfp8" in only_message(ada.err)
    sizes = ("--clip", "9x32x32", "--clip", "9x32x48", "--dynamic", "--cache", tmp_path)
    dynamic = run(capfd, "build", bundle.path, "--engine", "tensorrt-rtx", "--gpu", "sm120", *sizes)
    assert dynamic.code == 2 and "MXFP8 graphs for one size at a time" in only_message(dynamic.err)
    cpu = run(capfd, "generate", bundle.path, "a circle", "--engine", "openvino", "-o", tmp_path / "clip.mp4")
    assert cpu.code == 2 and "computes in" in only_message(cpu.err)
