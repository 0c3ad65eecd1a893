"""Engines on a real GPU: TensorRT's runtime behind the port that plans use."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from reelquant.runtime.engines.tensorrt.device import LoadedEngine, Shape, Tensor
from reelquant.runtime.engines.tensorrt.flavor import Flavor
from reelquant.runtime.errors import BundleError, EngineError, ReelquantError
from reelquant.runtime.files.atomic import partial_file


class TensorRtLoader:
    """Loads engines of one flavor; ``kernels`` is a folder for what TensorRT-RTX compiles at its first run."""

    def __init__(self, flavor: Flavor, kernels: Path) -> None:
        trt = flavor.module()
        self._flavor, self._trt, self._kernels = flavor, trt, kernels
        self._logger = trt.Logger(trt.Logger.ERROR)  # which the runtime does not own
        self._runtime = trt.Runtime(self._logger)
        if self._runtime is None:
            raise EngineError(f"{flavor.engine} cannot start its runtime here; see: reelquant doctor")

    def load(self, file: Path) -> LoadedEngine:
        """Deserialize an engine file, which must be trusted: it is code.

        Raises:
            BundleError: it is not for this GPU or this version.
        """
        data = file.read_bytes()
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise BundleError(
                f"{file} does not load on {self._flavor.engine} {self._flavor.version()}: it was built for another GPU "
                f"or version{_why_invalid(self._runtime, data)}; build it again here, or see: reelquant doctor"
            )
        return _Engine(self._flavor, self._trt, engine, self._kernels / f"{file.stem}.kernels")


class _Engine:
    def __init__(self, flavor: Flavor, trt: Any, engine: Any, kernels: Path) -> None:
        self._flavor, self._trt, self._engine, self._kernels = flavor, trt, engine, kernels
        self._config: Any = None  # kept as long as the context, like its cache
        self._kernel_cache: Any = None
        self._context = self._rtx_context() if flavor.ahead_of_time else self._plain_context()
        if self._context is None:
            raise EngineError(f"{flavor.engine} has no memory for an execution context; close what else uses the GPU")
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.tensors: Mapping[str, Tensor] = {
            name: Tensor(
                name, engine.get_tensor_dtype(name).name, engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            )
            for name in names
        }
        self._saved = kernels.is_file()

    @property
    def activation_bytes(self) -> int:
        return int(self._engine.device_memory_size_v2)

    @property
    def capturable(self) -> bool:
        return not self._flavor.ahead_of_time  # RTX records its own graphs, once its kernels are specialized

    def set_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise EngineError(f"the engine takes no {name} of shape {list(shape)}")
        if unknown := self._context.infer_shapes():
            raise EngineError(f"the engine does not know the shape of {', '.join(unknown)}")
        return {
            name: tuple(self._context.get_tensor_shape(name))
            for name, tensor in self.tensors.items()
            if not tensor.is_input
        }

    def enqueue(self, addresses: Mapping[str, int], activations: int, stream: int) -> None:
        self._context.set_device_memory(activations, self.activation_bytes)
        for name, address in addresses.items():
            self._context.set_tensor_address(name, address)
        if not self._context.execute_async_v3(stream):
            raise EngineError(f"{self._flavor.engine} failed to start a run; the GPU may be out of memory")
        if not self._saved and self._kernel_cache is not None:
            self._save_kernels()

    def _plain_context(self) -> Any:
        return self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)

    def _rtx_context(self) -> Any:
        config = self._config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._kernel_cache = config.create_runtime_cache()
        if self._kernels.is_file():
            self._kernel_cache.deserialize(self._kernels.read_bytes())  # False, and nothing loaded, if of another GPU
        config.set_runtime_cache(self._kernel_cache)
        return self._engine.create_execution_context(config)

    def _save_kernels(self) -> None:
        """Keep what was compiled at the first run; a cache that cannot be written costs only time."""
        self._saved = True
        with suppress(OSError, ReelquantError), partial_file(self._kernels) as temporary:
            temporary.write_bytes(bytes(self._kernel_cache.serialize()))


def _why_invalid(runtime: Any, data: bytes) -> str:
    """TensorRT-RTX's own diagnosis of an engine that does not load."""
    if not hasattr(runtime, "get_engine_validity"):
        return ""
    validity, diagnostics = runtime.get_engine_validity(data)
    return f" ({validity.name}, diagnostics {diagnostics})"
