"""OpenVINO: compiled for the shapes of a run, at rest between clips, and in bf16 where the graph allows it and the CPU can."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from reelquant.quant.graph.attentions import attention_nodes
from reelquant.quant.graph.graph_files import load_graph
from reelquant.quant.passes.mark_bf16 import mark_bf16
from reelquant.runtime.engines.openvino import kernels
from reelquant.runtime.engines.openvino.model import attention_in_bf16
from reelquant.runtime.engines.openvino.session import OpenVinoSession
from reelquant.runtime.engines.registry import open_onnx
from reelquant.runtime.engines.session import BF16_ALL, BF16_ATTENTION, Array
from tests.conftest import ROOT, BundleMaker

ATTENTION = """<ir_version: 10, opset_import: ["" : 21]>
attention (float[b, n, 64] q, float[b, 64, n] k, float[b, n, 64] v, float[64, 64] w) => (float[b, n, 64] y) {
 scores = MatMul(q, k)
 weights = Softmax<axis = -1>(scores)
 mixed = MatMul(weights, v)
 y = MatMul(mixed, w)
}"""


def feeds(tokens: int = 80, batch: int = 2) -> dict[str, Array]:
    rng = np.random.default_rng(tokens)
    shapes = {"q": (batch, tokens, 64), "k": (batch, 64, tokens), "v": (batch, tokens, 64), "w": (64, 64)}
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def saved(folder: Path, bf16: str = "") -> Path:
    model = ir.from_onnx_text(ATTENTION)
    if bf16:
        mark_bf16(model, bf16)
    path = folder / f"{bf16 or 'fp32'}.onnx"
    ir.save(model, path)
    return path


def error(found: Array, wanted: Array) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("lean", [False, True])
def test_what_was_compiled_is_kept_for_some_shapes(lean: bool, tmp_path: Path) -> None:
    graph = saved(tmp_path)
    session = OpenVinoSession(graph, 1, lean)
    reference = open_onnx("onnxruntime", graph)
    assert not session._compiled  # nothing is known yet
    for tokens in (16, 24, 32, 40, 16, 40, 40):
        fed = feeds(tokens)
        assert error(session.run(fed)["y"], reference.run(fed)["y"]) < 1e-5
    assert len(session._compiled) == (1 if lean else 3)
    assert next(reversed(session._compiled))[0] == (2, 40, 64)  # the last that was used is the last to go


def test_a_session_at_rest_answers_as_before(tmp_path: Path) -> None:
    session = OpenVinoSession(saved(tmp_path), 1, lean=False)
    first = session.run(feeds())["y"]
    compiled = dict(session._compiled)
    session.rest()
    assert np.array_equal(session.run(feeds())["y"], first) and session._compiled == compiled


@pytest.mark.parametrize("what", [BF16_ATTENTION, BF16_ALL])
def test_a_graph_says_what_may_be_in_bf16(what: str, tmp_path: Path) -> None:
    """bf16 has 8 bits of mantissa: an error of 2⁻⁹ a value. On a CPU without units for it nothing changes."""
    exact = open_onnx("onnxruntime", saved(tmp_path)).run(feeds())["y"]
    assert error(open_onnx("openvino", saved(tmp_path)).run(feeds())["y"], exact) < 1e-5
    marked = open_onnx("openvino", saved(tmp_path, what)).run(feeds())["y"]
    assert marked.dtype == np.float32
    if kernels.multiplies_bf16():
        assert 1e-4 < error(marked, exact) < 2e-2
    else:
        assert error(marked, exact) < 1e-5
    # The other engine computes the same file as it is.
    assert np.array_equal(open_onnx("onnxruntime", saved(tmp_path, what)).run(feeds())["y"], exact)


def test_a_word_that_nobody_knows_changes_nothing(tmp_path: Path) -> None:
    exact = open_onnx("openvino", saved(tmp_path)).run(feeds())["y"]
    assert np.array_equal(open_onnx("openvino", saved(tmp_path, "everywhere")).run(feeds())["y"], exact)


def test_every_attention_of_a_transformer_is_found(demo_bundle: BundleMaker) -> None:
    graph = demo_bundle("t2v", "fp32").graph("transformer", "main")
    model: Any = kernels.core().read_model(str(graph))
    assert attention_in_bf16(model) == len(attention_nodes(load_graph(graph))) > 0


CAPPED = """
import json, sys
from pathlib import Path
import numpy as np
from reelquant.runtime.engines.registry import open_onnx
from reelquant.runtime.engines.openvino.kernels import multiplies_bf16
fed = dict(np.load(sys.argv[1]))
print(json.dumps([multiplies_bf16(), [open_onnx("openvino", Path(path)).run(fed)["y"].tolist() for path in sys.argv[2:]]]))
"""


def test_where_bf16_is_taken_away_it_is_fp32(tmp_path: Path) -> None:
    """Under oneDNN's own switch the units are there and may not be used: results are those of fp32, or of bf16's rounding."""
    np.savez(tmp_path / "fed.npz", **feeds(24))  # type: ignore[arg-type]
    exact = open_onnx("onnxruntime", saved(tmp_path)).run(feeds(24))["y"]
    graphs = [str(saved(tmp_path, what)) for what in (BF16_ATTENTION, BF16_ALL)]
    command = [sys.executable, "-c", CAPPED, str(tmp_path / "fed.npz"), *graphs]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DNNL_MAX_CPU_ISA": "AVX2"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    _, found = json.loads(ran.stdout.splitlines()[-1])
    assert all(error(np.array(each, np.float32), exact) < 2e-2 for each in found)
