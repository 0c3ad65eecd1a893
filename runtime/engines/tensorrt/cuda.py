"""The few things of CUDA that rendering needs, as a port: cuda-bindings behind it, or a replay on host memory in tests."""

from __future__ import annotations

from threading import local
from typing import Any, Protocol

from numpy.typing import NDArray

from reelquant.runtime.errors import EngineError, MissingExtra

Array = NDArray[Any]


class Cuda(Protocol):
    """Device memory by address, one stream's order of work, and graphs of recorded work. Handles are integers.

    Every method raises EngineError with CUDA's own name of the error when CUDA refuses.
    """

    def allocate(self, size: int) -> int:
        """Device memory of ``size`` bytes, aligned to 256."""
        ...

    def free(self, address: int) -> None: ...

    def stream(self) -> int: ...

    def synchronize(self, stream: int) -> None:
        """Wait until all work of ``stream`` is done."""
        ...

    def to_device(self, address: int, array: Array, stream: int) -> None:
        """Copy a C-contiguous array; it must stay as it is until the stream has got there."""
        ...

    def to_host(self, array: Array, address: int, stream: int) -> None:
        """Copy into a C-contiguous array, complete once the stream is synchronized."""
        ...

    def record(self, stream: int) -> int:
        """An event at this point of ``stream``."""
        ...

    def seconds(self, start: int, end: int) -> float:
        """Time between two events that have happened; both are given up."""
        ...

    def begin_capture(self, stream: int) -> None: ...

    def end_capture(self, stream: int) -> int:
        """A graph of the work since :meth:`begin_capture`, which was recorded and not done."""
        ...

    def launch(self, graph: int, stream: int) -> None: ...

    def free_graph(self, graph: int) -> None: ...


class CudaRuntime:
    """The port on NVIDIA's cuda-bindings; ``device`` is a number as in ``nvidia-smi``.

    Raises:
        MissingExtra: cuda-bindings is not installed.
        EngineError: there is no driver, or no such device.
    """

    def __init__(self, device: int = 0) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise MissingExtra("cuda-bindings", "tensorrt") from error
        self._cuda: Any = runtime
        self._device, self._threads = device, local()
        self._choose_device()

    def allocate(self, size: int) -> int:
        return int(self._call("cudaMalloc", max(size, 1)))

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def stream(self) -> int:
        return int(self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking))

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def to_device(self, address: int, array: Array, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, stream)

    def to_host(self, array: Array, address: int, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, stream)

    def record(self, stream: int) -> int:
        event = self._call("cudaEventCreate")
        self._call("cudaEventRecord", event, stream)
        return int(event)

    def seconds(self, start: int, end: int) -> float:
        milliseconds = float(self._call("cudaEventElapsedTime", start, end))
        for event in (start, end):
            self._call("cudaEventDestroy", event)
        return milliseconds / 1000

    def begin_capture(self, stream: int) -> None:
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> int:
        recorded = self._call("cudaStreamEndCapture", stream)
        graph = int(self._call("cudaGraphInstantiate", recorded, 0))
        self._call("cudaGraphDestroy", recorded)
        return graph

    def launch(self, graph: int, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def free_graph(self, graph: int) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def _call(self, name: str, *arguments: Any) -> Any:
        """``cuda.bindings`` answers (error, *results); the one result, or None."""
        self._choose_device()
        return self._asked(name, *arguments)

    def _choose_device(self) -> None:
        """CUDA's current device is a thread's own, and a pipeline may be shared by threads."""
        if getattr(self._threads, "device", None) != self._device:
            self._asked("cudaSetDevice", self._device)
            self._threads.device = self._device

    def _asked(self, name: str, *arguments: Any) -> Any:
        error, *results = getattr(self._cuda, name)(*arguments)
        if int(error) != 0:
            raise EngineError(f"CUDA refused {name}: {error.name} ({int(error)}); see: reelquant doctor")
        return results[0] if results else None
