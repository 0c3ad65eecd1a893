"""What every engine does alike, on graphs small enough to be read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from reelquant.runtime import errors
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.registry import get_engine, open_onnx
from reelquant.runtime.engines.session import Array
from reelquant.runtime.errors import BadInput, BundleError, EngineError
from tests.conftest import CPU_ENGINES, EVERY_CORE, TinyBundleMaker

EACH_ENGINE = pytest.mark.parametrize("engine", CPU_ENGINES)
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
STREAM = """<ir_version: 10, opset_import: ["" : 21]>
stream (float[1, 2] "cache.in", float[n, 2] x) => (float[m, 2] y, float[1, 2] "next_cache.in")
<int64[1] start = {-1}, int64[1] end = {9999}, int64[1] axis = {0}> {
 joined = Concat <axis = 0> ("cache.in", x)
 y = Neg(joined)
 "next_cache.in" = Slice(joined, start, end, axis)
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


@pytest.mark.parametrize("lean", [False, True])
@EACH_ENGINE
def test_names_are_the_graphs_own(engine: str, lean: bool, graph: Path) -> None:
    """OpenVINO melts no-ops away and gives what is left the names of both sides."""
    session = open_onnx(engine, graph, EngineOptions(threads=1), lean=lean)
    assert set(session.inputs) == set(FEEDS) and session.outputs == ("y", "next_cache.in")
    results = session.run(FEEDS)
    assert np.array_equal(results["y"], np.full((2, 3), 3)) and np.array_equal(results["next_cache.in"], -FEEDS["x"])


@pytest.mark.parametrize("lean", [False, True])
@EACH_ENGINE
def test_results_belong_to_the_caller(engine: str, lean: bool, graph: Path) -> None:
    session = open_onnx(engine, graph, EngineOptions(threads=1), lean=lean)
    first = session.run(FEEDS)
    session.run({**FEEDS, "x": np.full((2, 3), -9, np.float32)})
    assert np.array_equal(first["y"], np.full((2, 3), 3)) and first["y"].flags.c_contiguous
    assert session.run({**FEEDS, "x": np.ones((3, 6), np.float32)[:2, ::2]})["y"].sum() == 12  # fed with gaps in memory


@pytest.mark.parametrize("lean", [False, True])
@EACH_ENGINE
def test_a_stream_writes_its_cache_in_place(engine: str, lean: bool, tmp_path: Path) -> None:
    ir.save(ir.from_onnx_text(STREAM), tmp_path / "graph.onnx")
    session = open_onnx(engine, tmp_path / "graph.onnx", EngineOptions(threads=1), lean=lean)
    cache, x = np.zeros((1, 2), np.float32), np.arange(6, dtype=np.float32).reshape(3, 2)
    for _ in range(2):
        before = cache.copy()
        fed = {"cache.in": cache, "x": x}
        results, kept = session.run_keeping(fed, "next_cache.in".__eq__, {"next_cache.in": cache})
        assert kept["next_cache.in"] is cache and np.array_equal(cache, x[-1:]) and results.keys() == {"y"}
        assert np.array_equal(results["y"], -np.concatenate([before, x]))
        x = x[::-1] + 1
    session.run({"cache.in": cache.copy(), "x": np.zeros((4, 2), np.float32)})  # which asks for no place
    assert np.array_equal(cache, x[:1] - 1)


@EACH_ENGINE
def test_a_graph_that_cannot_be_loaded(engine: str, graph: Path) -> None:
    graph.write_bytes(graph.read_bytes()[:-9])
    with pytest.raises(BundleError, match="cannot load .*graph.onnx"):
        open_onnx(engine, graph)


@EACH_ENGINE
def test_an_engine_says_what_it_is(engine: str, graph: Path) -> None:
    assert get_engine(engine).version()[0].isdigit() and "CPU" in get_engine(engine).report().devices


@pytest.mark.parametrize("lean", [False, True])
@EACH_ENGINE
def test_a_run_that_fails(engine: str, lean: bool, graph: Path) -> None:
    """What an engine raises while it runs, for want of memory or a shape that does not fit, becomes the user's error."""
    session = open_onnx(engine, graph, lean=lean)
    with pytest.raises(EngineError, match=r"failed while it ran .*graph\.onnx: .*smaller size"):
        session.run({**FEEDS, "x": np.ones((2, 4), np.float32)})


@EACH_ENGINE
def test_build_refuses_what_cannot_be_loaded(engine: str, graph: Path) -> None:
    open_onnx(engine, graph)
    graph.write_bytes(graph.read_bytes()[:-9])
    with pytest.raises(BundleError, match="cannot load .*graph.onnx"):
        open_onnx(engine, graph)


def test_an_unknown_engine() -> None:
    with pytest.raises(
        BadInput, match="unknown engine 'torch'; one of openvino, onnxruntime, onnxruntime-cuda, tensorrt-rtx"
    ):
        open_onnx("torch", Path("x"))
    with pytest.raises(BadInput, match="tensorrt-rtx runs no ONNX files"):
        open_onnx("tensorrt-rtx", Path("x"))


def test_threads_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REELQUANT_THREADS", "3")
    assert (EngineOptions().cpu_threads(), EngineOptions(threads=2).cpu_threads()) == (3, 2)
    monkeypatch.setenv("REELQUANT_THREADS", "two")
    with pytest.raises(BadInput, match="REELQUANT_THREADS is 'two'; give a number of CPU threads"):
        EngineOptions().cpu_threads()
    monkeypatch.delenv("REELQUANT_THREADS")
    assert EngineOptions().cpu_threads() is None


_THREADS = """
import os, sys
import onnxruntime
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.registry import open_onnx
os.sched_setaffinity(0, {int(sys.argv[2])})
before = len(os.listdir("/proc/self/task"))
session = open_onnx("onnxruntime", Bundle.open(sys.argv[1]).graph("text_encoder", "main"))
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(len(EVERY_CORE) < 2 or not Path("/proc/self/task").is_dir(), reason="needs two cores, and Linux")
def test_onnxruntime_keeps_to_the_cores_that_it_may_use(tiny_bundle: TinyBundleMaker) -> None:
    """Its own choice is a thread pinned to each core of the machine."""
    command = [sys.executable, "-c", _THREADS, str(tiny_bundle("t2v").path), str(min(EVERY_CORE))]
    environment = {name: value for name, value in os.environ.items() if name != "REELQUANT_THREADS"}
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert ran.stdout == "0\n"


@pytest.mark.parametrize("error", [OSError("libnvinfer.so.10: cannot open"), ImportError("libcublasLt.so.13: cannot")])
def test_a_package_that_does_not_load_is_not_called_missing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(name: str) -> None:
        raise error

    monkeypatch.setattr(errors, "import_module", broken)
    with pytest.raises(
        EngineError, match=r"^openvino is installed and does not load \(lib.*force-reinstall 'reelquant\[x\]'"
    ):
        errors.imported("openvino", "x")
