"""The few things of CUDA that rendering needs, as a port: cuda-bindings behind it, or a replay on host memory in tests."""

from __future__ import annotations

from contextlib import suppress
from threading import local
from typing import Any, Protocol

from numpy.typing import NDArray

from reelquant.runtime.errors import EngineError, MissingExtra
from reelquant.runtime.machine.gpus import in_order_of_nvidia_smi

Array = NDArray[Any]
_LESS = "close what else uses the GPU, or take a smaller size, fewer frames, --tiled, or a bundle with smaller weights"


class Cuda(Protocol):
    """Device memory by address, one stream's order of work, and graphs of recorded work. Handles are integers.

    Every method raises EngineError with CUDA's own name of the error when CUDA refuses.
    """

    def allocate(self, size: int) -> int:
        """Device memory of ``size`` bytes, aligned to 256."""
        ...

    def free(self, address: int) -> None:
        """Give it back. In a thread that captures work this would spoil what is captured."""
        ...

    def memory(self) -> tuple[int, int]:
        """Bytes that are free on the device, and that it has."""
        ...

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

    def copy(self, to: int, address: int, size: int, stream: int) -> None:
        """Copy ``size`` bytes from one place on the device to another."""
        ...

    def record(self, stream: int) -> int:
        """An event at this point of ``stream``."""
        ...

    def seconds(self, start: int, end: int) -> float:
        """Time between two events that have happened."""
        ...

    def forget(self, event: int) -> None:
        """Give up an event."""
        ...

    def begin_capture(self, stream: int) -> None: ...

    def end_capture(self, stream: int) -> int:
        """A graph of the work since :meth:`begin_capture`, which was recorded and not done.

        Whether it raises or not, nothing is captured any more.
        """
        ...

    def launch(self, graph: int, stream: int) -> None: ...

    def free_graph(self, graph: int) -> None: ...


class CudaRuntime:
    """The port on NVIDIA's cuda-bindings; ``device`` is a number as in ``nvidia-smi`` (of those in CUDA_VISIBLE_DEVICES, if that is set).

    Raises:
        MissingExtra: cuda-bindings is not installed.
        EngineError: there is no driver, or no such device.
    """

    def __init__(self, device: int = 0, extra: str = "tensorrt-rtx") -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise MissingExtra("cuda-bindings", extra) from error
        self._cuda: Any = runtime
        self._device, self._threads = device, local()
        in_order_of_nvidia_smi()
        self._choose_device()

    def allocate(self, size: int) -> int:
        try:
            return int(self._call("cudaMalloc", max(size, 1)))
        except EngineError as error:
            raise EngineError(f"the GPU has no {size / 1e9:.2f} GB left{self._left()}: {error}; {_LESS}") from error

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def memory(self) -> tuple[int, int]:
        free, total = self._call("cudaMemGetInfo")
        return int(free), int(total)

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

    def copy(self, to: int, address: int, size: int, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpyAsync", to, address, size, kind, stream)

    def record(self, stream: int) -> int:
        event = self._call("cudaEventCreate")
        try:
            self._call("cudaEventRecord", event, stream)
        except EngineError:
            self.forget(event)
            raise
        return int(event)

    def seconds(self, start: int, end: int) -> float:
        return float(self._call("cudaEventElapsedTime", start, end)) / 1000

    def forget(self, event: int) -> None:
        self._call("cudaEventDestroy", event)

    def begin_capture(self, stream: int) -> None:
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> int:
        try:
            recorded = self._call("cudaStreamEndCapture", stream)
        except EngineError:
            self._cuda.cudaGetLastError()  # or it would be the answer to the next call too
            raise
        try:
            return int(self._call("cudaGraphInstantiate", recorded, 0))
        finally:
            self._call("cudaGraphDestroy", recorded)

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
        return results[0] if len(results) == 1 else tuple(results) or None

    def _left(self) -> str:
        with suppress(EngineError):
            free, total = self.memory()
            return f" ({free / 1e9:.2f} of {total / 1e9:.2f} GB are free)"
        return ""
