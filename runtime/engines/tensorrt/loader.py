"""Engines on a real GPU: TensorRT's runtime behind the port that sessions use."""

from __future__ import annotations

import mmap
import re
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reelquant.runtime.engines.tensorrt.device import LoadedEngine, Shape, Tensor
from reelquant.runtime.engines.tensorrt.flavor import Flavor
from reelquant.runtime.errors import BundleError, EngineError, ReelquantError
from reelquant.runtime.files.atomic import partial_file

_SHORT = re.compile(r"out ?of ?memory|MemoryAllocation|INSUFFICIENT_GPU_MEMORY|allocation fail", re.IGNORECASE)
_LINES = 50  # of what TensorRT says, the last are kept


class TensorRtLoader:
    """Loads engines of one flavor. ``kernels`` is a folder for what TensorRT-RTX compiles at an engine's first run, ``gpu`` a name
    of the GPU and its driver, for which alone that is of use.
    """

    def __init__(self, flavor: Flavor, kernels: Path, gpu: str = "") -> None:
        trt = flavor.module()
        self._flavor, self._trt, self._kernels, self._gpu = flavor, trt, kernels, re.sub(r"\W+", "-", gpu)
        self._said: list[str] = []
        self._logger = collecting_logger(trt, self._said)  # which the runtime does not own
        self._runtime = trt.Runtime(self._logger)
        if self._runtime is None:
            raise EngineError(f"{flavor.engine} cannot start its runtime here{self._why()}; see: reelquant doctor")

    def load(self, file: Path) -> LoadedEngine:
        """Deserialize an engine file, which must be trusted: it is code.

        Raises:
            BundleError: it is not for this GPU or this version, or is damaged.
            EngineError: the GPU has no memory for it.
        """
        self._said.clear()
        with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
            engine = self._runtime.deserialize_cuda_engine(data)
            validity = "" if engine is not None else self._validity(data)
        if engine is None:
            name = f"{self._flavor.engine} {self._flavor.version()}"
            if _SHORT.search(f"{validity} {' '.join(self._said)}"):
                raise EngineError(
                    f"the GPU has no memory for {file.name} ({file.stat().st_size / 1e9:.1f} GB){self._why()}; "
                    "close what else uses the GPU, or see what fits: reelquant doctor BUNDLE"
                )
            raise BundleError(
                f"{file} does not load on {name}: it was built for another GPU or version, or is damaged{validity}"
                f"{self._why()}; build it again here, or see: reelquant doctor"
            )
        kernels = self._kernels / f"{file.stem}.{self._gpu or 'gpu'}.kernels"
        return _Engine(self._flavor, self._trt, engine, kernels, self._said)

    def _validity(self, data: Any) -> str:
        """TensorRT-RTX's own diagnosis of an engine that does not load."""
        if not hasattr(self._runtime, "get_engine_validity"):
            return ""
        validity, diagnostics = self._runtime.get_engine_validity(data)
        return f" ({validity.name}{_decoded(self._trt.EngineInvalidityDiagnostics, diagnostics)})"

    def _why(self) -> str:
        return _why(self._said)


@dataclass
class _Parts:
    """What an engine is made of, in the order in which it may be given up: the context points to all the others without owning
    them, so that they must outlive it (NVIDIA's own execution provider for RTX does the same).
    """

    engine: Any
    config: Any = None
    cache: Any = None
    context: Any = None
    file: Path | None = None  # of the cache
    stored: bytes = field(default=b"", repr=False)  # what of the cache is in the file

    def release(self) -> None:
        self.context = None
        self.save()
        self.cache = None
        self.config = None
        self.engine = None

    def save(self) -> None:
        """Keep the kernels that were compiled since; a cache that cannot be written costs only time."""
        if self.cache is None or self.file is None:
            return
        data = bytes(self.cache.serialize())
        if data == self.stored:
            return
        self.stored = data
        with suppress(OSError, ReelquantError), partial_file(self.file) as temporary:
            temporary.write_bytes(data)


class _Engine:
    def __init__(self, flavor: Flavor, trt: Any, engine: Any, kernels: Path, said: list[str]) -> None:
        self._flavor, self._trt, self._said = flavor, trt, said
        self._parts = _Parts(engine)
        self._release = weakref.finalize(self, self._parts.release)
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.tensors: Mapping[str, Tensor] = {
            name: Tensor(
                name, engine.get_tensor_dtype(name).name, engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            )
            for name in names
        }
        inputs = [name for name, tensor in self.tensors.items() if tensor.is_input]
        self._dynamic = any(-1 in tuple(engine.get_tensor_shape(name)) for name in inputs)
        self._bytes = int(engine.device_memory_size_v2)
        self._activations: tuple[int, int] | None = None  # as the context has them
        self._new = True  # whether kernels may have been compiled that were not kept
        self._parts.context = self._rtx_context(kernels) if flavor.ahead_of_time else self._plain_context()
        if self._parts.context is None:
            self.close()
            raise EngineError(
                f"{flavor.engine} has no memory for an execution context{_why(said)}; close what else uses the GPU"
            )
        # Engines are built with every layer's name, for the inspector; to hand them on at each start costs time.
        self._parts.context.nvtx_verbosity = trt.ProfilingVerbosity.NONE

    @property
    def activation_bytes(self) -> int:
        return self._bytes

    @property
    def capturable(self) -> bool:
        return not self._flavor.ahead_of_time  # RTX records its own graphs, once its kernels are specialized

    def set_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        context = self._parts.context
        try:
            for name, shape in shapes.items():
                if not context.set_input_shape(name, shape):
                    raise EngineError(f"the engine takes no {name} of shape {list(shape)}{_why(self._said)}")
            if unknown := context.infer_shapes():
                raise EngineError(f"the engine does not know the shape of {', '.join(unknown)}")
            if self._dynamic:  # the least that these shapes need, where all of the profile's would be taken
                self._bytes = int(context.update_device_memory_size_for_shapes())
        except RuntimeError as error:
            raise self._failed("take the shapes", error) from error
        self._activations, self._new = None, True
        return {
            name: tuple(context.get_tensor_shape(name)) for name, tensor in self.tensors.items() if not tensor.is_input
        }

    def enqueue(self, addresses: Mapping[str, int], activations: int, stream: int) -> None:
        context = self._parts.context
        try:
            if self._activations != (activations, self._bytes):
                context.set_device_memory(activations, self._bytes)
                self._activations = (activations, self._bytes)
            for name, address in addresses.items():
                if not context.set_tensor_address(name, address):
                    raise EngineError(f"the engine does not take the memory of {name}{_why(self._said)}")
            started = context.execute_async_v3(stream)
        except RuntimeError as error:
            raise self._failed("start a run", error) from error
        if not started:
            raise self._failed("start a run")
        if self._new:
            self._new = False
            self._parts.save()

    def close(self) -> None:
        self._release()

    def _plain_context(self) -> Any:
        engine = self._parts.engine
        return engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)

    def _rtx_context(self, kernels: Path) -> Any:
        parts, trt = self._parts, self._trt
        config = parts.config = parts.engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        # Not in the background, where the first runs take other kernels: one seed would not be one clip, and what is kept too little.
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        parts.cache, parts.file = config.create_runtime_cache(), kernels
        if kernels.is_file():
            data = kernels.read_bytes()
            if parts.cache.deserialize(data):  # False, and nothing loaded, where it is damaged or of another version
                parts.stored = data
        config.set_runtime_cache(parts.cache)
        return parts.engine.create_execution_context(config)

    def _failed(self, doing: str, error: Exception | None = None) -> EngineError:
        said = f": {' '.join(str(error).split())}" if error else ""
        if _SHORT.search(f"{said} {' '.join(self._said)}"):
            what = "the GPU is out of memory; a smaller size or --tiled needs less"
        else:
            what = "if the GPU is short of memory, a smaller size needs less, else report it with the bundle's manifest"
        return EngineError(f"{self._flavor.engine} failed to {doing}{said}{_why(self._said)}; {what}")


def collecting_logger(trt: Any, said: list[str]) -> Any:
    """A logger of TensorRT's that keeps its warnings and errors in ``said``; its own prints them, on stdout."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.Logger.ERROR, trt.Logger.INTERNAL_ERROR, trt.Logger.WARNING):
                said.append(" ".join(message.split()))
                del said[:-_LINES]

    return Logger()


def _why(said: list[str]) -> str:
    return f" ({said[-1][:300]})" if said else ""


def _decoded(names: Any, diagnostics: Any) -> str:
    """A bit mask of ``names`` by their names."""
    found = [name for name, member in names.__members__.items() if int(diagnostics) & int(member)]
    return "".join(f", {name}" for name in found)
