"""Quantized means quantized: counted in the graph's structure, weighed on disk, and still the same clip."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from reelquant.quant.graph.graph_files import WEIGHTS, load_graph
from reelquant.quant.graph.graph_stats import is_quantized, is_weight_only
from reelquant.quant.graph.linears import linear_nodes
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.relative_l2 import relative_l2
from reelquant.runtime.request import Request
from tests.conftest import EVERY_CORE, BundleMaker

BLOCKS, PER_BLOCK = 6, 6  # to_q, to_k, to_v, to_out, and two of the feed-forward
# Relative L2 of one guided run of 4 steps against fp32, with room for another engine version.
LIMITS = {"int8": 0.25, "fp8": 0.35}


def bytes_by_dtype(weights: Path) -> Counter[str]:
    """What a safetensors file holds, read from its header and nothing of ours."""
    with weights.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    found: Counter[str] = Counter()
    for entry in header.values():
        found[entry["dtype"]] += entry["data_offsets"][1] - entry["data_offsets"][0]
    return found


@pytest.mark.parametrize(("precision", "dtype"), [("int8", "I8"), ("fp8", "F8_E4M3")])
@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_the_blocks_linears_are_stored_in_eight_bits(
    task: str, precision: str, dtype: str, demo_bundle: BundleMaker
) -> None:
    bundle, fp32 = demo_bundle(task, precision), demo_bundle(task, "fp32")
    linears = linear_nodes(load_graph(bundle.graph("transformer", "main")))
    quantized = [linear.name for linear in linears if is_quantized(linear)]
    assert len(quantized) == BLOCKS * PER_BLOCK
    assert all(name.startswith("transformer_blocks.") and ".norm" not in name for name in quantized)

    stored_names = [*quantized, *(linear.name for linear in linears if is_weight_only(linear))]
    elements = sum(int(np.prod(linear.shape)) for linear in linears if linear.name in stored_names)
    stored = bytes_by_dtype(bundle.path / "transformer" / WEIGHTS)
    before = bytes_by_dtype(fp32.path / "transformer" / WEIGHTS)
    assert stored[dtype] >= elements  # one byte each (and zero points)
    assert before["F32"] - stored["F32"] == pytest.approx(4 * elements, rel=0.02)
    assert bundle.manifest.components["transformer"].stats["main"]["quantized_linears"] == len(quantized)
    report = bundle.manifest.components["transformer"].passes["main"]["insert_qdq"]
    modulation = 2 * BLOCKS if precision == "fp8" else 0
    assert (report["quantized"], report["weight_only"], report["kept_high"]) == (36, modulation, 17 - modulation)
    assert (report["attentions"], report["skipped"]) == (BLOCKS if precision == "fp8" else 0, 0)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_quantized_bundle_follows_fp32(precision: str, engine: str, demo_bundle: BundleMaker) -> None:
    request = Request("a red circle moves right on a white background", seed=3, steps=4)
    results = []
    for name in ("fp32", precision):
        pipeline = Pipeline(demo_bundle("t2v", name), EngineOptions(engine))
        results.append(pipeline.sample(request))
    difference = relative_l2(results[1], results[0])
    assert 1e-5 < difference <= LIMITS[precision]  # a difference of nothing would mean that nothing was quantized


# Run on all cores, whatever share of them the tests have: bytes depend on the number of threads.
THREE_CLIPS = """
import os, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, map(int, sys.argv[2].split(",")))
from reelquant.runtime import Request, load_pipeline
for seed in (5, 5, 6):
    request = Request("a blue square moves up on a black background", seed=seed, steps=2)
    print(load_pipeline(sys.argv[1]).generate(request).sha256)
"""


@pytest.mark.parametrize("precision", ["fp32", "int8", "fp8"])
def test_same_seed_same_bytes(precision: str, demo_bundle: BundleMaker) -> None:
    arguments = [str(demo_bundle("t2v", precision).path), ",".join(map(str, EVERY_CORE))]
    done = subprocess.run([sys.executable, "-c", THREE_CLIPS, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one, again, other = done.stdout.split()
    assert one == again != other
