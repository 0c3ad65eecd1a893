"""A GPU in host memory: CUDA's port on NumPy buffers, and engines whose graphs OpenVINO computes there.

What the real port would get wrong silently is an error here: memory that was freed or never written, addresses that
are not aligned, work that was recorded and never launched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from reelquant.runtime.engines.tensorrt.device import NUMPY, LoadedEngine, Shape, Tensor

Array = NDArray[Any]
_TYPES = {"f32": "FLOAT", "f16": "HALF", "i64": "INT64"}
_CORE = openvino.Core()
_ALIGNMENT = 256


@dataclass
class ReplayCuda:
    """The port. ``copies`` are the bytes of every copy to the host, ``uploads`` of every one to the device, ``launches`` counts recorded graphs' runs."""

    blocks: dict[int, Array] = field(default_factory=dict)
    copies: list[int] = field(default_factory=list)
    uploads: list[int] = field(default_factory=list)
    launches: int = 0
    largest: int = 0
    _recording: list[Callable[[], None]] | None = None
    _graphs: dict[int, list[Callable[[], None]]] = field(default_factory=dict)
    _events: int = 0

    def allocate(self, size: int) -> int:
        whole = np.full(size + _ALIGNMENT, 0xFF, np.uint8)  # NaN, until something is written
        start = -whole.ctypes.data % _ALIGNMENT
        block = whole[start : start + size]
        self.blocks[block.ctypes.data] = block
        self.largest = max(self.largest, self.held)
        return int(block.ctypes.data)

    def free(self, address: int) -> None:
        self.blocks.pop(address)[:] = 0xFF

    @property
    def held(self) -> int:
        return sum(block.nbytes for block in self.blocks.values())

    def stream(self) -> int:
        return 7

    def synchronize(self, stream: int) -> None:
        assert stream == 7 and self._recording is None

    def view(self, address: int, size: int) -> Array:
        """``size`` bytes at ``address``, which must be one block's start."""
        assert address % _ALIGNMENT == 0
        block = self.blocks[address]
        assert size <= block.nbytes
        return block[:size]

    def to_device(self, address: int, array: Array, stream: int) -> None:
        assert array.flags.c_contiguous and self._recording is None
        self.view(address, array.nbytes)[:] = array.reshape(-1).view(np.uint8)
        self.uploads.append(array.nbytes)

    def to_host(self, array: Array, address: int, stream: int) -> None:
        assert array.flags.c_contiguous and self._recording is None
        array.reshape(-1).view(np.uint8)[:] = self.view(address, array.nbytes)
        self.copies.append(array.nbytes)

    def record(self, stream: int) -> int:
        self._events += 1
        return self._events

    def seconds(self, start: int, end: int) -> float:
        assert end == start + 1
        return 0.25

    def do(self, work: Callable[[], None]) -> None:
        """What an engine asks of the stream: done now, or recorded."""
        if self._recording is None:
            work()
        else:
            self._recording.append(work)

    def begin_capture(self, stream: int) -> None:
        self._recording = []

    def end_capture(self, stream: int) -> int:
        assert self._recording is not None
        graph = len(self._graphs) + 1
        self._graphs[graph], self._recording = self._recording, None
        return graph

    def launch(self, graph: int, stream: int) -> None:
        self.launches += 1
        for work in self._graphs[graph]:
            work()

    def free_graph(self, graph: int) -> None:
        del self._graphs[graph]


class ReplayEngine:
    """An engine whose graph OpenVINO computes between NumPy views of the replayed memory."""

    def __init__(self, cuda: ReplayCuda, graph: Path, activation_bytes: int, capturable: bool) -> None:
        self._model = _CORE.read_model(str(graph))
        self._cuda, self.activation_bytes, self.capturable = cuda, activation_bytes, capturable
        ports = [(port, True) for port in self._model.inputs] + [(port, False) for port in self._model.outputs]
        names = [_name(port) for port, _ in ports]
        self.tensors: Mapping[str, Tensor] = {
            name: Tensor(name, _TYPES[port.get_element_type().get_type_name()], is_input)
            for name, (port, is_input) in zip(names, ports, strict=True)
        }
        self._shapes: dict[str, Shape] = {}
        self._compiled: Any = None

    def set_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        self._model.reshape({name: list(shape) for name, shape in shapes.items()})
        found = {_name(port): tuple(port.get_shape()) for port in self._model.outputs}
        self._compiled = _CORE.compile_model(self._model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        self._shapes = {**shapes, **found}
        return found

    def enqueue(self, addresses: Mapping[str, int], activations: int, stream: int) -> None:
        assert addresses.keys() == self.tensors.keys() and len(set(addresses.values())) == len(addresses)
        placed = dict(addresses)

        def work() -> None:
            self._cuda.view(activations, self.activation_bytes)[:] = 0xFF  # whoever left something there has lost it
            inputs = {name: self._view(name, placed[name]) for name, tensor in self.tensors.items() if tensor.is_input}
            for name, value in inputs.items():
                assert value.dtype.kind != "f" or np.isfinite(value).all(), f"{name} was never written"
            results = self._compiled(inputs)
            for i, name in enumerate(name for name, tensor in self.tensors.items() if not tensor.is_input):
                self._view(name, placed[name])[...] = results[i]

        self._cuda.do(work)

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

    def load(self, file: Path) -> LoadedEngine:
        assert file.read_bytes()  # a real engine
        component, graph, *_ = file.name.split(".")
        self.loaded.append(f"{component}/{graph}")
        path = self.bundle / component / f"{graph}.onnx"
        return ReplayEngine(self.cuda, path, self.activation_bytes[f"{component}/{graph}"], self.capturable)
