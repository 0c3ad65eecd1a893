"""NVFP4: what is stored, against a simulation block by block; and the graph, run by ONNX's reference evaluator."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from reelquant.quant.calibration.ranges import Ranges
from reelquant.quant.graph.graph_stats import graph_stats
from reelquant.quant.graph.linears import linear_nodes
from reelquant.quant.passes.insert_qdq import insert_qdq
from reelquant.quant.recipe import Recipe
from reelquant.runtime.errors import BadInput, BundleError
from tests.quant.passes.test_insert_qdq import MODULATION, QUANTIZED, calibrated, error
from tests.quant.tiny import SHAPES, Array, feeds, forward, model, parameters

RECIPE = Recipe.parse("""
name = "blocks"
description = "NVFP4 alone"
rules = [
    { match = "transformer_blocks.*.attn1.to_*", numerics = "nvfp4" },
    { match = "transformer_blocks.*.ff.net.*", numerics = "nvfp4" },
]
""")
STEPS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])  # E2M1's magnitudes
BLOCK = 16


def to_e4m3(value: float) -> float:
    return float(np.float32(value).astype(ml_dtypes.float8_e4m3fn))


def simulated(x: Array, absmax: float) -> Array:
    """``x`` [..., K] as NVFP4 holds it: every value by itself, with the block scale of its 16 and the tensor's."""
    whole = np.float32(absmax) / np.float32(6 * 448)
    found = np.empty(x.shape)
    for place, block in enumerate(x.reshape(-1, BLOCK)):
        scale = to_e4m3(min(max(float(np.abs(block).max()) / 6 / float(whole), 2.0**-9), 448)) * float(whole)
        steps = np.abs(block) / scale
        nearest = STEPS[np.abs(steps[:, None] - STEPS).argmin(1)]
        found.reshape(-1, BLOCK)[place] = np.sign(block) * nearest * scale
    return found


class FP4DynamicQuantize(OpRun):
    """TensorRT's operator as NVIDIA documents it: x, the tensor's scale → E2M1 steps, E4M3 scales of blocks."""

    op_domain = "trt"

    def _run(self, x: Array, whole: Array, axis: int = -1, block_size: int = 16, scale_type: int = 17) -> Any:
        assert (axis, block_size, scale_type) == (-1, BLOCK, TensorProto.FLOAT8E4M3FN)
        blocks = x.reshape(*x.shape[:-1], -1, BLOCK)
        scales = np.clip(np.abs(blocks).max(-1) / 6 / whole, 2.0**-9, 448).astype(ml_dtypes.float8_e4m3fn)
        steps = blocks / (scales.astype(np.float32) * whole)[..., None]
        return np.clip(steps, -6, 6).reshape(x.shape).astype(ml_dtypes.float4_e2m1fn), scales


FP4DynamicQuantize.__name__ = "TRT_FP4DynamicQuantize"


def quantized(weights: dict[str, Array], ranges: Ranges) -> ir.Model:
    graph = model(weights)
    insert_qdq(graph, ranges, RECIPE)
    return graph


def test_a_graph_computes_the_simulation() -> None:
    weights, fed = parameters(), feeds()
    ranges, absmax = calibrated(weights, fed)
    graph = quantized(weights, ranges)
    stats = graph_stats(graph)
    assert stats["quantized_linears"] == len(QUANTIZED)
    assert stats["weight_bytes_by_dtype"]["FLOAT4E2M1"] == sum(np.prod(SHAPES[name]) for name in QUANTIZED) // 2
    # q, k and v read one activation.
    assert sum(node.op_type == FP4DynamicQuantize.__name__ for node in graph.graph) == len(QUANTIZED) - 4
    assert {linear.name: linear.activation for linear in linear_nodes(graph)} == {
        linear.name: linear.activation for linear in linear_nodes(model(weights))
    }

    def multiply(name: str, x: Array, weight: Array) -> Array:
        if name in QUANTIZED:
            x, weight = simulated(x, absmax[name]), simulated(weight.T, float(np.abs(weight).max())).T
        return x @ weight

    ran: Any = ReferenceEvaluator(ir.to_proto(graph), new_ops=[FP4DynamicQuantize]).run(None, fed)
    found = ran[0]
    # A value at a boundary of E2M1's wide steps falls either way.
    assert error(found, forward(weights, fed, multiply)) < 2e-2
    assert 0.02 < error(found, forward(weights, fed, lambda _, x, w: x @ w)) < 0.25


def test_what_does_not_fit_blocks_stays_high() -> None:
    everything = Recipe.parse('name="all"\ndescription="all"\nrules=[{match="*", numerics="nvfp4"}]')
    weights, fed = parameters(), feeds()
    graph = model(weights)
    report = insert_qdq(graph, calibrated(weights, fed)[0], everything)
    assert MODULATION <= report.skipped.keys()  # Gemm, whose weight is stored the other way
    assert "a MatMul whose inner side is a multiple of 16" in report.skipped["transformer_blocks.0.norm1.linear"]


def test_a_weight_that_is_not_finite_is_refused() -> None:
    weights, fed = parameters(), feeds()
    ranges = calibrated(weights, fed)[0]
    weights["transformer_blocks.1.ff.net.2.weight"][3, 4] = np.nan
    with pytest.raises(BundleError, match=r"cannot quantize transformer_blocks.1.ff.net.2.weight: .* not a number"):
        quantized(weights, ranges)


def test_int8_is_not_mixed_with_it() -> None:
    with pytest.raises(BadInput, match="names int8 beside fp4 and fp8, which no engine"):
        Recipe.parse('name="x"\ndescription="x"\nextends="nvfp4"\nrules=[{match="proj_out", numerics="int8"}]')
