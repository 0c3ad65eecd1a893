"""The port on the real cuda-bindings, which load without a driver: every call exists, takes these arguments, and fails well."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread, current_thread

import numpy as np
import pytest
from cuda.bindings import runtime

from reelquant.runtime.engines.tensorrt.cuda import CudaRuntime
from reelquant.runtime.errors import EngineError
from reelquant.runtime.machine.gpus import gpus

NO_GPU = pytest.mark.skipif(bool(gpus().names), reason="these calls are refused only where there is no GPU")
BUFFER = np.zeros(16, np.uint8)
CALLS: dict[str, Callable[[CudaRuntime], object]] = {
    "cudaMalloc": lambda cuda: cuda.allocate(256),
    "cudaFree": lambda cuda: cuda.free(256),
    "cudaStreamCreateWithFlags": lambda cuda: cuda.stream(),
    "cudaStreamSynchronize": lambda cuda: cuda.synchronize(0),
    "cudaMemcpyAsync": lambda cuda: cuda.to_device(256, BUFFER, 0),
    "cudaEventCreate": lambda cuda: cuda.record(0),
    "cudaStreamBeginCapture": lambda cuda: cuda.begin_capture(0),
    "cudaStreamEndCapture": lambda cuda: cuda.end_capture(0),
}


@NO_GPU
def test_no_driver_is_said() -> None:
    with pytest.raises(
        EngineError, match=r"CUDA refused cudaSetDevice: cudaErrorInsufficientDriver \(35\); see: reelq"
    ):
        CudaRuntime()


@NO_GPU
@pytest.mark.parametrize("name", CALLS)
def test_every_call_reaches_cuda(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "cudaSetDevice", lambda device: (runtime.cudaError_t.cudaSuccess,))
    with pytest.raises(EngineError, match=f"CUDA refused {name}: cudaError"):
        CALLS[name](CudaRuntime())


@NO_GPU
def test_every_thread_computes_on_the_chosen_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's current device is a thread's own: in a new one it would be the first GPU."""
    chosen: list[tuple[str, int]] = []

    def choose(device: int) -> tuple[object]:
        chosen.append((current_thread().name, device))
        return (runtime.cudaError_t.cudaSuccess,)

    monkeypatch.setattr(runtime, "cudaSetDevice", choose)
    monkeypatch.setattr(runtime, "cudaMalloc", lambda size: (runtime.cudaError_t.cudaSuccess, 4096))
    cuda = CudaRuntime(1)
    worker = Thread(target=lambda: [cuda.allocate(1), cuda.allocate(1)], name="worker")
    worker.start()
    worker.join()
    cuda.allocate(1)
    assert chosen == [(current_thread().name, 1), ("worker", 1)]
