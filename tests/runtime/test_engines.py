"""What every engine does alike, on graphs small enough to be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from reelquant.runtime.engine import ENGINES, Array, engine_module, engine_version, open_plan
from reelquant.runtime.errors import BadInput, BundleError, EngineError

EACH_ENGINE = pytest.mark.parametrize("engine", sorted(ENGINES))
# No-ops around each name that matters, and an input that nothing reads.
GRAPH = """<ir_version: 10, opset_import: ["" : 21]>
names (float[n, 3] "cache.in", float[n, 3] x, int64[1] unused) => (float[n, 3] y, float[n, 3] "next_cache.in") {
 a = Identity("cache.in")
 b = Sum(x)
 c = Add(a, b)
 d = Relu(c)
 y = Identity(d)
 e = Neg(b)
 "next_cache.in" = Sum(e)
}"""
FEEDS: dict[str, Array] = {
    "cache.in": np.ones((2, 3), np.float32),
    "x": np.full((2, 3), 2, np.float32),
    "unused": np.zeros(1, np.int64),
}


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    ir.save(ir.from_onnx_text(GRAPH), tmp_path / "graph.onnx")
    return tmp_path / "graph.onnx"


@EACH_ENGINE
def test_names_are_the_graphs_own(engine: str, graph: Path) -> None:
    """OpenVINO melts no-ops away and gives what is left the names of both sides."""
    plan = open_plan(engine, graph, threads=1)
    assert set(plan.inputs) == set(FEEDS) and plan.outputs == ("y", "next_cache.in")
    results = plan.run(FEEDS)
    assert np.array_equal(results["y"], np.full((2, 3), 3)) and np.array_equal(results["next_cache.in"], -FEEDS["x"])


@EACH_ENGINE
def test_results_belong_to_the_caller(engine: str, graph: Path) -> None:
    plan = open_plan(engine, graph, threads=1)
    first = plan.run(FEEDS)
    plan.run({**FEEDS, "x": np.full((2, 3), -9, np.float32)})
    assert np.array_equal(first["y"], np.full((2, 3), 3)) and first["y"].flags.c_contiguous
    assert plan.run({**FEEDS, "x": np.ones((3, 6), np.float32)[:2, ::2]})["y"].sum() == 12  # fed with gaps in memory


@EACH_ENGINE
def test_a_graph_that_cannot_be_loaded(engine: str, graph: Path) -> None:
    graph.write_bytes(graph.read_bytes()[:-9])
    with pytest.raises(BundleError, match="cannot load .*graph.onnx"):
        open_plan(engine, graph)


@EACH_ENGINE
def test_an_engine_says_what_it_is(engine: str, graph: Path) -> None:
    assert engine_version(engine)[0].isdigit() and "CPU" in engine_module(engine).devices()


@EACH_ENGINE
def test_a_run_that_fails(engine: str, graph: Path) -> None:
    """What an engine raises while it runs, for want of memory or a shape that does not fit, becomes the user's error."""
    plan = open_plan(engine, graph)
    with pytest.raises(EngineError, match=r"failed while it ran .*graph\.onnx: .*smaller size"):
        plan.run({**FEEDS, "x": np.ones((2, 4), np.float32)})


@EACH_ENGINE
def test_build_refuses_what_cannot_be_loaded(engine: str, graph: Path) -> None:
    engine_module(engine).build(graph)
    graph.write_bytes(graph.read_bytes()[:-9])
    with pytest.raises(BundleError, match="cannot load .*graph.onnx"):
        engine_module(engine).build(graph)


def test_an_unknown_engine() -> None:
    with pytest.raises(BadInput, match="unknown engine 'torch'; one of openvino, onnxruntime"):
        open_plan("torch", Path("x"))
