"""Run a graph's engines: the one that was built for the shapes at hand, arrays in, arrays out."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from reelquant.runtime.engines.session import Array, Feeds, Session, Value, Values
from reelquant.runtime.engines.sums import Adder
from reelquant.runtime.engines.tensorrt.cuda import Cuda
from reelquant.runtime.engines.tensorrt.device import NUMPY, Device, DeviceArray, LoadedEngine, Shape
from reelquant.runtime.errors import BadInput, EngineError

_GRAPHS = 4  # recorded per engine; a stream's caches alternate between two sets of addresses


@dataclass(frozen=True)
class EngineFile:
    """An engine on disk, and the least and most shape of each of its inputs."""

    file: Path
    inputs: Mapping[str, tuple[Shape, Shape]]

    @classmethod
    def of_record(cls, bundle: Path, record: Mapping[str, Any]) -> EngineFile:
        """From what the manifest of ``bundle`` says of an engine."""
        shapes = record["inputs"]
        return cls(
            bundle / record["file"], {name: (tuple(least), tuple(most)) for name, (least, most) in shapes.items()}
        )

    def takes(self, shapes: Mapping[str, Shape]) -> bool:
        return shapes.keys() == self.inputs.keys() and all(
            len(shape) == len(least) and all(a <= side <= b for a, side, b in zip(least, shape, most, strict=True))
            for shape, (least, most) in ((shape, self.inputs[name]) for name, shape in shapes.items())
        )

    def holds(self, shape: Shape) -> bool:
        """Whether all inputs but the coefficients of a sum may have ``shape``."""
        shapes = {name: most if name == "coefficients" else shape for name, (_, most) in self.inputs.items()}
        return self.takes(shapes)

    @property
    def largest(self) -> str:
        return ", ".join(f"{name} {list(most)}" for name, (_, most) in sorted(self.inputs.items()))


class BoundArray:
    """A host array that is fed many times: it is copied to the device once, by the engine that first reads it."""

    def __init__(self, array: Array) -> None:
        self.array, self.shape, self.dtype = array, array.shape, str(array.dtype)
        self._copies: dict[str, DeviceArray] = {}

    def on(self, device: Device, dtype: str) -> DeviceArray:
        """The copy in TensorRT's ``dtype``."""
        if dtype not in self._copies:
            self._copies[dtype] = copy = DeviceArray(device.cuda, self.shape, dtype)
            array: Array = np.ascontiguousarray(self.array, NUMPY[dtype])
            device.cuda.to_device(copy.address, array, device.stream)
            device.cuda.synchronize(device.stream)  # until then the array must stay as it is
        return self._copies[dtype]


class TensorRtSession(Session):
    """A graph's engines as one session.

    What is kept is a :class:`DeviceArray`, to be fed again; given a place in ``into``, it changes places with it.
    """

    batch = 1  # what every engine is built for (shapes.py)

    def __init__(self, device: Device, files: Sequence[EngineFile], sums: Sequence[EngineFile] = ()) -> None:
        """``sums`` are the engines that add up what lies between two runs."""
        self._device, self._files, self._sums = device, files, sums
        self._runner: _Runner | None = None
        self._adder: Adder | None = None  # of the last clip's shape
        self._bound: weakref.WeakValueDictionary[int, BoundArray] = weakref.WeakValueDictionary()
        self.inputs = tuple(files[0].inputs)
        self.outputs: tuple[str, ...] = ()

    def run(self, feeds: Values) -> dict[str, Array]:
        """As a session's ``run``.

        Raises:
            BadInput: no engine was built for these shapes.
            EngineError: CUDA or TensorRT gave up.
        """
        return self.run_keeping(feeds, lambda name: False)[0]

    def run_keeping(
        self, feeds: Values, keep: Callable[[str], bool], into: Values = MappingProxyType({})
    ) -> tuple[dict[str, Array], dict[str, Value]]:
        """As a session's ``run_keeping``; raises as :meth:`run`."""
        given = {name: feeds[name] for name in self.inputs}
        if not any(file.takes(_shapes(given)) for file in self._files):
            raise BadInput(_unbuilt(given, self._files))
        with self._device.lock:
            return self._runner_for(given).run(given, keep, into)

    def put(self, feeds: Feeds) -> Values:
        """Each goes to the device when an engine first reads it: which one that is depends on the shapes of all inputs. An array
        that is put again while it is bound, as for both halves of guidance, goes there once.
        """
        return {name: self._bind(value) for name, value in feeds.items() if name in self.inputs}

    def adder(self, shape: tuple[int, ...]) -> Adder | None:
        from reelquant.runtime.engines.tensorrt.adder import TensorRtAdder  # which is made of this

        values = (int(np.prod(shape)),)
        fitting = [file for file in self._sums if file.holds(values)]
        if fitting and (self._adder is None or self._adder.shape != shape):
            self._adder = TensorRtAdder(self._device, TensorRtSession(self._device, fitting[:1]), shape)
        return self._adder if fitting else None

    def _bind(self, array: Array) -> BoundArray:
        bound = self._bound.get(
            id(array)
        )  # an id is an array's own as long as it lives, and what is bound keeps it alive
        if bound is None:
            bound = self._bound[id(array)] = BoundArray(array)
        return bound

    def _runner_for(self, given: Mapping[str, Any]) -> _Runner:
        shapes = _shapes(given)
        if self._runner is None or not self._runner.file.takes(shapes):
            if self._runner is not None:
                self._runner.close()  # given back before the next is loaded
                self._runner = None
            file = next(file for file in self._files if file.takes(shapes))
            self._runner = _Runner(self._device, file)
            self.outputs = self._runner.outputs
        return self._runner


class _Runner:
    """One loaded engine with the buffers of its inputs and outputs."""

    def __init__(self, device: Device, file: EngineFile) -> None:
        self.file, self._device = file, device
        self._engine: LoadedEngine = device.loader.load(file.file)
        self.outputs = tuple(name for name, tensor in self._engine.tensors.items() if not tensor.is_input)
        self._buffers: dict[str, DeviceArray] = {}
        self._shapes: dict[str, Shape] = {}
        self._results: dict[str, Shape] = {}
        self._recorded: dict[tuple[int, ...], int | None] = {}
        self._capturable = self._engine.capturable
        self.close = weakref.finalize(self, _release, device, self._engine, self._recorded)

    def run(
        self, given: Mapping[str, Any], keep: Callable[[str], bool], into: Values
    ) -> tuple[dict[str, Array], dict[str, Value]]:
        cuda, stream = self._device.cuda, self._device.stream
        shapes = _shapes(given)
        if shapes != self._shapes:
            self._shapes = {}  # until it took them
            _forget_graphs(cuda, self._recorded)
            self._results, self._shapes = self._engine.set_shapes(shapes), shapes
        addresses, held = {}, []
        for name, value in given.items():
            if isinstance(value, BoundArray):
                value = value.on(self._device, self._engine.tensors[name].dtype)
            if isinstance(value, DeviceArray):
                addresses[name] = value.address
                continue
            array: Array = np.ascontiguousarray(value, NUMPY[self._engine.tensors[name].dtype])
            held.append(array)
            addresses[name] = self._buffer(name, array.shape).address
            cuda.to_device(addresses[name], array, stream)
        for name, shape in self._results.items():
            addresses[name] = self._buffer(name, shape).address
        try:
            with self._timed():
                self._enqueue(addresses)
            found = self._collect(keep, into)
            cuda.synchronize(stream)
        except BaseException:
            with suppress(EngineError):  # until what was started is done, what it reads must stay
                cuda.synchronize(stream)
            raise
        return found

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Count what the stream does inside, once it is done."""
        cuda, stream, events = self._device.cuda, self._device.stream, list[int]()
        try:
            events.append(cuda.record(stream))
            yield
            events.append(cuda.record(stream))
            cuda.synchronize(stream)
            self._device.seconds += cuda.seconds(*events)
        finally:
            for event in events:
                cuda.forget(event)

    def _buffer(self, name: str, shape: Shape) -> DeviceArray:
        if name not in self._buffers or self._buffers[name].shape != shape:
            self._buffers.pop(name, None)
            self._buffers[name] = DeviceArray(self._device.cuda, shape, self._engine.tensors[name].dtype)
        return self._buffers[name]

    def _collect(self, keep: Callable[[str], bool], into: Values) -> tuple[dict[str, Array], dict[str, Value]]:
        results: dict[str, Array] = {}
        kept: dict[str, Value] = {}
        for name, shape in self._results.items():
            if keep(name):
                kept[name] = self._kept(name, into.get(name))
                continue
            array: Array = np.empty(shape, NUMPY[self._engine.tensors[name].dtype])
            self._device.cuda.to_host(array, self._buffers[name].address, self._device.stream)
            results[name] = array
        return results, kept

    def _kept(self, name: str, place: Any) -> DeviceArray:
        """The result itself, or ``place``, with which it changes memory: what was read there is free for the next run."""
        result = self._buffers[name]
        if isinstance(place, DeviceArray) and (place.shape, place.dtype) == (result.shape, result.dtype):
            place.exchange(result)
            return place
        return self._buffers.pop(name)

    def _enqueue(self, addresses: dict[str, int]) -> None:
        """Start the engine: the second time with the same addresses as a recorded graph, from then on by it."""
        cuda, stream = self._device.cuda, self._device.stream
        activations = self._device.activations(id(self._engine), self._engine.activation_bytes)
        key = (activations, *addresses.values())
        graph = self._recorded.get(key)
        if graph is None and key in self._recorded and self._capturable:
            graph = self._recorded[key] = self._capture(addresses, activations)
        if graph is not None:
            cuda.launch(graph, stream)
            return
        self._engine.enqueue(addresses, activations, stream)
        if len(self._recorded) >= _GRAPHS:
            _forget_graphs(cuda, self._recorded)
        self._recorded[key] = None

    def _capture(self, addresses: dict[str, int], activations: int) -> int | None:
        """The engine's work as a graph; None where it cannot be recorded, which is not tried again: it runs as it is, as trtexec
        does it.
        """
        cuda, stream = self._device.cuda, self._device.stream
        try:
            with _nothing_collected():
                cuda.begin_capture(stream)
                try:
                    self._engine.enqueue(addresses, activations, stream)
                except BaseException:
                    with suppress(EngineError):
                        cuda.free_graph(cuda.end_capture(stream))
                    raise
                return cuda.end_capture(stream)
        except EngineError:
            self._capturable = False
            return None


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """No garbage is collected inside: what it frees on the device would spoil what is being recorded."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _release(device: Device, engine: LoadedEngine, recorded: dict[tuple[int, ...], int | None]) -> None:
    """Of a runner: its graphs before its engine, and both before the block that they compute in."""
    with device.lock:
        _forget_graphs(device.cuda, recorded)
        engine.close()
        device.leaves(id(engine))


def _forget_graphs(cuda: Cuda, recorded: dict[tuple[int, ...], int | None]) -> None:
    graphs = [graph for graph in recorded.values() if graph is not None]
    recorded.clear()
    for graph in graphs:
        with suppress(EngineError):
            cuda.free_graph(graph)


def _shapes(given: Mapping[str, Any]) -> dict[str, Shape]:
    return {name: tuple(value.shape) for name, value in given.items()}


def _unbuilt(given: Mapping[str, Any], files: Sequence[EngineFile]) -> str:
    wanted = ", ".join(f"{name} {list(value.shape)}" for name, value in sorted(given.items()))
    built = " or ".join(file.largest for file in files)
    return (
        f"no engine was built for this size ({wanted}; built: {built}); "
        "build one with: reelquant build BUNDLE --clip FRAMESxHEIGHTxWIDTH, or ask for a size that was"
    )
