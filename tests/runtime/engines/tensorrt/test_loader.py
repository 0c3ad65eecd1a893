"""What TensorRT asks of who runs its engines: the order of calls, who outlives whom, and what to say when it refuses."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import tensorrt_rtx

from reelquant.runtime.engines.tensorrt.device import LoadedEngine
from reelquant.runtime.engines.tensorrt.loader import TensorRtLoader
from reelquant.runtime.errors import BundleError, EngineError
from tests.runtime.engines.tensorrt.fake_trt import GPU, World, fake_flavor

ADDRESSES = {"x": 256, "y": 512}
KERNELS = "net.main.NVIDIA-L4-13000.kernels"


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "net.main.engine").write_bytes(b"an engine")
    return tmp_path / "net.main.engine"


def loaded(world: World, file: Path) -> LoadedEngine:
    return TensorRtLoader(fake_flavor(world), file.parent / "kernels", "NVIDIA L4 13000").load(file)


def ran(world: World, file: Path, times: int = 1) -> LoadedEngine:
    engine = loaded(world, file)
    assert engine.set_shapes({"x": (2, 3)}) == {"y": (2, 3)}
    for _ in range(times):
        engine.enqueue(ADDRESSES, 1024, 7)
    return engine


@pytest.mark.parametrize("closed", [True, False])
def test_the_context_goes_before_what_it_points_to(world: World, file: Path, closed: bool) -> None:
    engine = ran(world, file)
    if closed:
        engine.close()
    del engine
    gc.collect()
    assert world.calls.count("context destroyed") == 1 and world.faults == []


def test_kernels_are_kept_when_they_are_compiled_and_when_the_engine_goes(world: World, file: Path) -> None:
    engine = ran(world, file)
    kept = file.parent / "kernels" / KERNELS
    assert kept.read_bytes() == GPU + b"kernel0"
    world.compiled.append("later")  # while it ran
    engine.close()
    assert kept.read_bytes() == GPU + b"kernel0,later"
    before = kept.stat().st_mtime_ns
    world.compiled.clear()
    engine = ran(World(refuses={}), file)
    engine.close()
    assert kept.stat().st_mtime_ns == before  # nothing new, nothing written


def test_kernels_that_are_of_no_use_here_are_made_again(world: World, file: Path) -> None:
    kept = file.parent / "kernels" / KERNELS
    kept.parent.mkdir()
    kept.write_bytes(b"sm120:other")
    ran(world, file).close()
    assert kept.read_bytes() == GPU + b"kernel0"


def test_kernels_are_compiled_before_the_run_and_graphs_recorded_whole(world: World, file: Path) -> None:
    engine = loaded(world, file)
    config = engine._parts.config  # type: ignore[attr-defined]
    eager = tensorrt_rtx.DynamicShapesKernelSpecializationStrategy.EAGER
    assert config.dynamic_shapes_kernel_specialization_strategy == eager
    assert config.cuda_graph_strategy == tensorrt_rtx.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE


def test_memory_is_named_when_it_changes(world: World, file: Path) -> None:
    engine = ran(world, file, times=3)
    assert world.calls.count("set_device_memory") == 1
    engine.enqueue(ADDRESSES, 2048, 7)
    assert world.calls.count("set_device_memory") == 2 and world.faults == []


def test_a_dynamic_engine_takes_what_its_shapes_need(file: Path) -> None:
    world = World(dynamic=True)
    engine = loaded(world, file)
    assert engine.activation_bytes == 4096
    engine.set_shapes({"x": (2, 3)})
    assert engine.activation_bytes == 2048
    engine.enqueue(ADDRESSES, 1024, 7)
    assert world.faults == []


@pytest.mark.parametrize(
    ("refuses", "validity", "error", "words"),
    [
        (
            "CUDA out of memory",
            0,
            EngineError,
            "the GPU has no memory for net.main.engine .*CUDA out of memory.*doctor",
        ),
        ("no kernel", 16, EngineError, "the GPU has no memory for net.main.engine"),
        ("stale", 3, BundleError, r"\(INVALID, VERSION_MISMATCH, UNSUPPORTED_CC\) \(stale\); build it again"),
        ("odd bytes", 32, BundleError, r"damaged \(INVALID, MALFORMED_ENGINE\) \(odd bytes\)"),
    ],
)
def test_an_engine_that_does_not_load(
    world: World, file: Path, refuses: str, validity: int, error: type[Exception], words: str,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    world.refuses["deserialize_cuda_engine"], world.validity = refuses, validity
    with pytest.raises(error, match=words):
        loaded(world, file)
    assert capfd.readouterr().out == ""
    world.refuses.clear()
    ran(world, file).close()  # the next one does
    assert world.faults == []


@pytest.mark.parametrize(
    ("call", "answer", "words"),
    [
        ("set_input_shape", "no such shape", r"takes no x of shape \[2, 3\] \(no such shape\)"),
        ("infer_shapes", RuntimeError("cannot infer"), "failed to take the shapes: cannot infer"),
        ("set_device_memory", RuntimeError("too small"), "failed to start a run: too small"),
        ("set_tensor_address", "not aligned", r"does not take the memory of x \(not aligned\)"),
        ("execute_async_v3", "out of memory", r"failed to start a run \(out of memory\); the GPU is out of memory"),
        ("execute_async_v3", None, "failed to start a run; if the GPU is short of memory"),
        ("create_execution_context", "OutOfMemory", r"no memory for an execution context \(OutOfMemory\)"),
    ],
)
def test_what_it_refuses_is_one_message(world: World, file: Path, call: str, answer: object, words: str) -> None:
    world.refuses[call] = answer
    with pytest.raises(EngineError, match=words):
        ran(world, file)
    world.refuses.clear()
    gc.collect()
    ran(world, file).close()
    made, gone = world.calls.count("create_execution_context"), world.calls.count("context destroyed")
    assert made - gone == (call == "create_execution_context") and world.faults == []
