"""A session through everything that a GPU can refuse: one message, nothing left behind, and the next clip is right."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path
from threading import Thread

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from reelquant.runtime.engines.session import Value
from reelquant.runtime.engines.tensorrt.device import Device
from reelquant.runtime.engines.tensorrt.session import EngineFile, TensorRtSession
from reelquant.runtime.errors import EngineError
from tests.runtime.engines.tensorrt.replay import ReplayCuda, ReplayLoader

Floats = NDArray[np.float32]
SHAPE, ACTIVATIONS, CHUNKS = (2, 3), 1024, 4
FACTORS: Floats = np.arange(6, dtype=np.float32).reshape(SHAPE)
CHUNK: Floats = np.ones(SHAPE, np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = x · factors + cache.s, and next_cache.s = y + x: as a stream of a VAE has them."""
    folder: Path = tmp_path_factory.mktemp("graph")
    x, factors, cache, scaled, y, following = (
        ir.val(name, ir.DataType.FLOAT, SHAPE) for name in ("x", "factors", "cache.s", "scaled", "y", "next_cache.s")
    )
    nodes = [
        ir.node("Mul", [x, factors], outputs=[scaled]),
        ir.node("Add", [scaled, cache], outputs=[y]),
        ir.node("Add", [y, x], outputs=[following]),
    ]
    graph = ir.Graph([x, factors, cache], [y, following], nodes=nodes, opset_imports={"": 20}, name="stream")
    (folder / "net").mkdir()
    ir.save(ir.Model(graph, ir_version=10), folder / "net" / "main.onnx")
    (folder / "net.main.engine").write_bytes(b"an engine")
    return folder


class Gpu:
    def __init__(self, folder: Path) -> None:
        self.cuda = ReplayCuda()
        self.loader = ReplayLoader(self.cuda, folder, {"net/main": ACTIVATIONS})
        self.device = Device(self.cuda, self.loader)
        shapes = {name: (SHAPE, SHAPE) for name in ("x", "factors", "cache.s")}
        self.file = EngineFile(folder / "net.main.engine", shapes)

    def session(self) -> TensorRtSession:
        return TensorRtSession(self.device, [self.file])

    @property
    def left(self) -> tuple[int, int, int, int]:
        gc.collect()
        return self.cuda.held, self.loader.open, len(self.cuda.graphs), len(self.cuda.events)


@pytest.fixture
def gpu(folder: Path) -> Gpu:
    return Gpu(folder)


def stream(session: TensorRtSession) -> list[Floats]:
    """Chunks through the cache that each hands to the next, in the same memory."""
    bound, cache, found = session.put({"factors": FACTORS}), np.zeros(SHAPE, np.float32), []
    kept: dict[str, Value] = {"next_cache.s": cache}
    for _ in range(CHUNKS):
        fed = {"x": CHUNK, **bound, "cache.s": kept["next_cache.s"]}
        results, kept = session.run_keeping(fed, lambda name: name != "y", kept)
        found.append(results["y"])
    return found


WANTED = [(i + 1) * FACTORS + i for i in range(CHUNKS)]


def test_a_stream(gpu: Gpu) -> None:
    session = gpu.session()
    np.testing.assert_array_equal(stream(session), WANTED)
    # The engine, two buffers that change places, the result, and one upload of the constant; graphs from the second time on.
    assert gpu.cuda.calls["load"] == 1 and gpu.cuda.launches > 0
    assert sum(gpu.cuda.uploads) == FACTORS.nbytes * (CHUNKS + 2)
    del session
    assert gpu.left == (0, 0, 0, 0)


def _calls(folder: Path) -> Counter[str]:
    gpu = Gpu(folder)
    stream(gpu.session())
    return gpu.cuda.calls


# Nobody can mend memory, a graph or an event that CUDA does not take back.
@pytest.mark.parametrize(
    "name",
    ["load", "allocate", "to_device", "to_host", "record", "seconds", "synchronize", "set_shapes", "enqueue", "launch"],
)
def test_any_call_can_fail(folder: Path, name: str) -> None:
    times = _calls(folder)[name]
    assert times > 0
    for number in range(1, times + 1):
        gpu = Gpu(folder)
        session = gpu.session()
        gpu.cuda.fails = {name: number}
        try:
            stream(session)
        except EngineError as error:
            assert f"CUDA refused {name}" in str(error)
        else:
            # Inside a capture a failure costs the graph alone.
            assert name == "enqueue"
        np.testing.assert_array_equal(stream(session), WANTED)
        del session
        assert gpu.left == (0, 0, 0, 0), f"after {name} number {number}"


@pytest.mark.parametrize("name", ["begin_capture", "end_capture"])
def test_what_cannot_be_captured_runs_as_it_is(gpu: Gpu, name: str) -> None:
    gpu.cuda.fails = {name: 1}
    session = gpu.session()
    np.testing.assert_array_equal(stream(session), WANTED)
    np.testing.assert_array_equal(stream(session), WANTED)
    assert gpu.cuda.calls["begin_capture"] == 1 and gpu.cuda.launches == 0  # it is not tried again
    del session
    assert gpu.left == (0, 0, 0, 0)


def test_out_of_memory_is_said_and_the_next_clip_works(gpu: Gpu) -> None:
    session = gpu.session()
    gpu.cuda.capacity = ACTIVATIONS
    with pytest.raises(EngineError, match="the GPU has no 0.00 GB left"):
        stream(session)
    gpu.cuda.capacity = 1 << 20
    np.testing.assert_array_equal(stream(session), WANTED)


def test_the_block_shrinks_with_what_is_loaded(gpu: Gpu, folder: Path) -> None:
    device = gpu.device
    small, large = (object(), object())
    device.activations(id(small), 100)
    device.activations(id(large), 5000)
    device.leaves(id(large))
    assert gpu.cuda.held == 0  # the small one's next run takes what it needs
    device.activations(id(small), 100)
    device.leaves(id(large))
    assert gpu.cuda.held == 100


def test_threads_take_turns(gpu: Gpu) -> None:
    sessions, found = [gpu.session() for _ in range(3)], list[list[Floats]]()
    threads = [Thread(target=lambda session=session: found.append(stream(session))) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for each in found:
        np.testing.assert_array_equal(each, WANTED)


def test_an_array_that_is_put_twice_goes_there_once(gpu: Gpu) -> None:
    """What both halves of guidance read, such as learned positions."""
    session = gpu.session()
    rows = [session.put({"factors": FACTORS, "not read": FACTORS}) for _ in range(2)]
    assert rows[0].keys() == {"factors"} and rows[0]["factors"] is rows[1]["factors"]
    for row in rows:
        session.run({"x": CHUNK, "cache.s": CHUNK, **row})
    assert gpu.cuda.uploads.count(FACTORS.nbytes) == 1 + 2 * 2
