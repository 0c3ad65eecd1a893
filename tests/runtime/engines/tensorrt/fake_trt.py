"""TensorRT-RTX's runtime objects without a GPU: its real enums, and objects that hold to its rules of order and lifetime.

A breach that the real thing would answer with undefined behaviour is noted in ``faults``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import tensorrt_rtx

from reelquant.runtime.engines.tensorrt.flavor import Flavor

GPU = b"sm89:"


@dataclass
class World:
    """What the objects share: ``size`` are the bytes that a context needs, ``compiled`` kernels of this process, ``refuses`` calls that
    fail, with what they say or answer.
    """

    size: int = 4096
    dynamic: bool = False
    compiled: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    refuses: dict[str, Any] = field(default_factory=dict)
    logger: Any = None
    validity: int = 0

    def refused(self, name: str) -> bool:
        self.calls.append(name)
        answer = self.refuses.get(name)
        if isinstance(answer, Exception):
            raise type(answer)(*answer.args)
        if isinstance(answer, str):
            self.logger.log(tensorrt_rtx.Logger.ERROR, answer)
        return name in self.refuses


class Cache:
    def __init__(self, world: World) -> None:
        self._world, self._loaded = world, list[str]()

    def deserialize(self, blob: bytes) -> bool:
        if not bytes(blob).startswith(GPU):
            return False
        self._loaded = bytes(blob).removeprefix(GPU).decode().split(",")
        return True

    def serialize(self) -> bytes:
        return GPU + ",".join(dict.fromkeys([*self._loaded, *self._world.compiled])).encode()

    def has(self, kernel: str) -> bool:
        return kernel in self._loaded


class Config:
    def __init__(self, world: World) -> None:
        self.world, self.allocation = world, None
        self.cache: Callable[[], Cache | None] = lambda: None
        self.cuda_graph_strategy = self.dynamic_shapes_kernel_specialization_strategy = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.allocation = strategy

    def create_runtime_cache(self) -> Cache:
        return Cache(self.world)

    def set_runtime_cache(self, cache: Cache) -> None:
        self.cache = weakref.ref(cache)


class Context:
    def __init__(self, world: World, engine: Engine, config: Config) -> None:
        assert config.allocation == tensorrt_rtx.ExecutionContextAllocationStrategy.USER_MANAGED
        self._world, self._state = world, "new"
        self._points_to: dict[str, Callable[[], Any]] = {
            "engine": weakref.ref(engine),
            "config": weakref.ref(config),
            "cache": config.cache,
        }
        self._memory, self._addresses = (0, 0), dict[str, int]()
        # Runs when this object goes, as the C++ destructor does, and not when its last reference is cleared by a collection.
        self._end = weakref.finalize(self, _destroyed, world, dict(self._points_to))

    def set_input_shape(self, name: str, shape: Any) -> bool:
        self._state = "shaped"
        return not self._world.refused("set_input_shape")

    def infer_shapes(self) -> list[str]:
        if self._state != "shaped":
            self._world.faults.append("infer_shapes before the shapes")
        self._state = "inferred"
        return ["y"] if self._world.refused("infer_shapes") else []

    def update_device_memory_size_for_shapes(self) -> int:
        self._world.calls.append("update_device_memory_size_for_shapes")
        return self._world.size // 2

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (2, 3)

    def set_device_memory(self, address: int, size: int) -> None:
        self._world.refused("set_device_memory")
        needed = self._world.size // 2 if self._world.dynamic else self._world.size
        if address % 256 or size < needed:
            self._world.faults.append(f"device memory of {size} bytes at {address}")
        self._memory = (address, size)

    def set_tensor_address(self, name: str, address: int) -> bool:
        if address % 256:
            self._world.faults.append(f"{name} is not aligned")
        self._addresses[name] = address
        return not self._world.refused("set_tensor_address")

    def execute_async_v3(self, stream: int) -> bool:
        if self._state != "inferred" or not self._memory[1] or self._addresses.keys() != {"x", "y"} or not stream:
            self._world.faults.append("started before everything was set")
        if self._world.refused("execute_async_v3"):
            return False
        self._world.compiled.append(f"kernel{len(self._world.compiled)}")
        return True


def _destroyed(world: World, points_to: dict[str, Callable[[], Any]]) -> None:
    world.calls.append("context destroyed")
    world.faults += [f"the {name} went before the context" for name, alive in points_to.items() if alive() is None]


class Engine:
    num_io_tensors = 2

    def __init__(self, world: World) -> None:
        self.world, self.device_memory_size_v2 = world, world.size
        self.configs: list[weakref.ref[Config]] = []

    def get_tensor_name(self, i: int) -> str:
        return "xy"[i]

    def get_tensor_dtype(self, name: str) -> Any:
        return tensorrt_rtx.DataType.HALF

    def get_tensor_mode(self, name: str) -> Any:
        return tensorrt_rtx.TensorIOMode.INPUT if name == "x" else tensorrt_rtx.TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 3) if self.world.dynamic else (2, 3)

    def create_runtime_config(self) -> Config:
        config = Config(self.world)
        self.configs.append(weakref.ref(config))
        return config

    def create_execution_context(self, config: Config) -> Context | None:
        return None if self.world.refused("create_execution_context") else Context(self.world, self, config)


def fake_flavor(world: World) -> Flavor:
    """TensorRT-RTX as ``world`` has it."""

    class Runtime:
        def __init__(self, logger: Any) -> None:
            world.logger = logger

        def deserialize_cuda_engine(self, data: Any) -> Engine | None:
            assert bytes(data)
            return None if world.refused("deserialize_cuda_engine") else Engine(world)

        def get_engine_validity(self, data: Any) -> tuple[Any, int]:
            return tensorrt_rtx.EngineValidity.INVALID, world.validity

    class Logger:  # of which ours is made
        def __init__(self) -> None: ...

    names = ("ProfilingVerbosity", "TensorIOMode", "ExecutionContextAllocationStrategy", "CudaGraphStrategy", "Logger",
             "DynamicShapesKernelSpecializationStrategy", "EngineInvalidityDiagnostics")  # fmt: skip
    real = {name: getattr(tensorrt_rtx, name) for name in names}
    module = SimpleNamespace(**real, Runtime=Runtime, ILogger=Logger, __version__=tensorrt_rtx.__version__)

    class Fake(Flavor):
        def module(self) -> Any:
            return module

    return Fake("tensorrt-rtx", "tensorrt_rtx", ahead_of_time=True)
