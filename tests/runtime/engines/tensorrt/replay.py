"""A GPU in host memory: CUDA's port on NumPy buffers, and engines whose graphs OpenVINO computes there.

What the real port would get wrong silently is an error here: memory that was freed or never written, addresses that
are not aligned, work that was recorded and never launched, a graph that outlives its engine. Inside a capture CUDA's rules hold: a copy, a
wait, memory taken or given back spoils what is captured, and every call fails until the capture is ended.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from reelquant.quant.graph.sum_graph import sum_graph
from reelquant.runtime.engines.tensorrt.device import NUMPY, LoadedEngine, Shape, Tensor
from reelquant.runtime.errors import EngineError

Array = NDArray[Any]
_TYPES = {"f32": "FLOAT", "f16": "HALF", "i64": "INT64"}
_CORE = openvino.Core()
_Work = tuple["ReplayEngine", Callable[[], None]]
_ALIGNMENT = 256


@dataclass
class ReplayCuda:
    """The port. ``copies`` are the bytes of every copy to the host, ``uploads`` of every one to the device, ``launches`` counts recorded
    graphs' runs. ``capacity`` is how much memory there is. ``fails`` are calls by name, and the number of them from now on of which the last is
    refused; ``calls`` counts what was called.
    """

    blocks: dict[int, Array] = field(default_factory=dict)
    copies: list[int] = field(default_factory=list)
    uploads: list[int] = field(default_factory=list)
    launches: int = 0
    largest: int = 0
    capacity: int = 1 << 40
    fails: dict[str, int] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    graphs: dict[int, list[_Work]] = field(default_factory=dict)
    events: set[int] = field(default_factory=set)
    _recording: list[_Work] | None = None
    _spoiled: bool = False
    _handles: Iterator[int] = field(default_factory=lambda: count(1))

    def _called(self, name: str, captured: bool = False) -> None:
        """One call; ``captured``: it may be made inside a capture."""
        self.calls[name] += 1
        if self.fails.get(name):
            self.fails[name] -= 1
            if self.fails[name] == 0:
                raise EngineError(f"CUDA refused {name}: cudaErrorUnknown (999); see: reelquant doctor")
        if self._recording is not None and not captured:
            self._spoiled = True
        if self._spoiled and name != "end_capture":
            raise EngineError(f"CUDA refused {name}: cudaErrorStreamCaptureInvalidated (901); see: reelquant doctor")

    def allocate(self, size: int) -> int:
        self._called("allocate")
        if self.held + size > self.capacity:
            raise EngineError(f"the GPU has no {size / 1e9:.2f} GB left: CUDA refused cudaMalloc: out of memory")
        whole = np.full(size + _ALIGNMENT, 0xFF, np.uint8)  # NaN, until something is written
        start = -whole.ctypes.data % _ALIGNMENT
        block = whole[start : start + size]
        self.blocks[block.ctypes.data] = block
        self.largest = max(self.largest, self.held)
        return int(block.ctypes.data)

    def free(self, address: int) -> None:
        self._called("free")
        self.blocks.pop(address)[:] = 0xFF

    def memory(self) -> tuple[int, int]:
        return self.capacity - self.held, self.capacity

    @property
    def held(self) -> int:
        return sum(block.nbytes for block in self.blocks.values())

    def stream(self) -> int:
        return 7

    def synchronize(self, stream: int) -> None:
        assert stream == 7
        self._called("synchronize")

    def view(self, address: int, size: int) -> Array:
        """``size`` bytes at ``address``, which must be one block's start."""
        assert address % _ALIGNMENT == 0
        block = self.blocks[address]
        assert size <= block.nbytes
        return block[:size]

    def to_device(self, address: int, array: Array, stream: int) -> None:
        assert array.flags.c_contiguous
        self._called("to_device")
        self.view(address, array.nbytes)[:] = array.reshape(-1).view(np.uint8)
        self.uploads.append(array.nbytes)

    def to_host(self, array: Array, address: int, stream: int) -> None:
        assert array.flags.c_contiguous
        self._called("to_host")
        array.reshape(-1).view(np.uint8)[:] = self.view(address, array.nbytes)
        self.copies.append(array.nbytes)

    def copy(self, to: int, address: int, size: int, stream: int) -> None:
        self._called("copy")
        self.view(to, size)[:] = self.view(address, size)

    def record(self, stream: int) -> int:
        self._called("record")
        event = next(self._handles)
        self.events.add(event)
        return event

    def seconds(self, start: int, end: int) -> float:
        self._called("seconds")
        assert {start, end} <= self.events and start < end
        return 0.25

    def forget(self, event: int) -> None:
        self.events.remove(event)

    def do(self, engine: ReplayEngine, work: Callable[[], None]) -> None:
        """What an engine asks of the stream: done now, or recorded."""
        if self._recording is None:
            work()
        else:
            assert not gc.isenabled(), "what is collected now would spoil what is captured"
            self._recording.append((engine, work))

    def begin_capture(self, stream: int) -> None:
        self._called("begin_capture")
        self._recording = []

    def end_capture(self, stream: int) -> int:
        recorded, spoiled = self._recording, self._spoiled
        assert recorded is not None
        self._recording, self._spoiled = None, False
        self._called("end_capture")
        if spoiled:
            raise EngineError("CUDA refused cudaStreamEndCapture: cudaErrorStreamCaptureInvalidated (901)")
        graph = next(self._handles)
        self.graphs[graph] = recorded
        return graph

    def launch(self, graph: int, stream: int) -> None:
        self._called("launch")
        self.launches += 1
        for _, work in self.graphs[graph]:
            work()

    def free_graph(self, graph: int) -> None:
        self._called("free_graph")
        del self.graphs[graph]


class ReplayEngine:
    """An engine whose graph OpenVINO computes between NumPy views of the replayed memory."""

    def __init__(self, cuda: ReplayCuda, graph: Path | bytes, activation_bytes: int, capturable: bool) -> None:
        self._model = _CORE.read_model(graph if isinstance(graph, bytes) else str(graph))
        self._cuda, self.activation_bytes, self.capturable = cuda, activation_bytes, capturable
        ports = [(port, True) for port in self._model.inputs] + [(port, False) for port in self._model.outputs]
        names = [_name(port) for port, _ in ports]
        self.tensors: Mapping[str, Tensor] = {
            name: Tensor(name, _TYPES[port.get_element_type().get_type_name()], is_input)
            for name, (port, is_input) in zip(names, ports, strict=True)
        }
        self._shapes: dict[str, Shape] = {}
        self._compiled: Any = None
        self.closed = False

    def set_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        assert not self.closed
        self._cuda._called("set_shapes")
        self._model.reshape({name: list(shape) for name, shape in shapes.items()})
        found = {_name(port): tuple(port.get_shape()) for port in self._model.outputs}
        self._compiled = _CORE.compile_model(self._model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        self._shapes = {**shapes, **found}
        return found

    def enqueue(self, addresses: Mapping[str, int], activations: int, stream: int) -> None:
        assert not self.closed
        assert addresses.keys() == self.tensors.keys()
        written = [address for name, address in addresses.items() if not self.tensors[name].is_input]
        assert sum(address in written for address in addresses.values()) == len(written)  # nothing else is there
        self._cuda._called("enqueue", captured=True)
        placed = dict(addresses)

        def work() -> None:
            self._cuda.view(activations, self.activation_bytes)[:] = 0xFF  # whoever left something there has lost it
            inputs = {name: self._view(name, placed[name]) for name, tensor in self.tensors.items() if tensor.is_input}
            for name, value in inputs.items():
                assert value.dtype.kind != "f" or np.isfinite(value).all(), f"{name} was never written"
            results = self._compiled(inputs)
            for i, name in enumerate(name for name, tensor in self.tensors.items() if not tensor.is_input):
                self._view(name, placed[name])[...] = results[i]

        self._cuda.do(self, work)

    def close(self) -> None:
        assert not any(engine is self for graph in self._cuda.graphs.values() for engine, _ in graph)
        self.closed = True

    def _view(self, name: str, address: int) -> Array:
        dtype = np.dtype(NUMPY[self.tensors[name].dtype])
        shape = self._shapes[name]
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return self._cuda.view(address, size).view(dtype).reshape(shape)


def _name(port: Any) -> str:
    name = str(port.get_node().get_friendly_name()).removesuffix("/sink_port_0")
    return name if name in port.get_names() else str(port.any_name)


@dataclass
class ReplayLoader:
    """Loads ``component.graph.KEY.engine`` as the graph of that name in ``bundle``."""

    cuda: ReplayCuda
    bundle: Path
    activation_bytes: Mapping[str, int]
    capturable: bool = True
    loaded: list[str] = field(default_factory=list)
    engines: list[ReplayEngine] = field(default_factory=list)

    @property
    def open(self) -> int:
        return sum(not engine.closed for engine in self.engines)

    def load(self, file: Path) -> LoadedEngine:
        assert file.read_bytes()  # a real engine
        component, graph, *_ = file.name.split(".")
        self.cuda._called("load")
        self.loaded.append(f"{component}/{graph}")
        path = self.bundle / component / f"{graph}.onnx"
        made = ReplayEngine(
            self.cuda,
            sum_graph() if component == "sampling" else path,
            self.activation_bytes[f"{component}/{graph}"],
            self.capturable,
        )
        self.engines.append(made)
        return made
