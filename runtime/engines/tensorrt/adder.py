"""Sums on the GPU, by a small engine of TensorRT's own: nothing else is installed that computes there."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.engines.session import Value
from reelquant.runtime.engines.sums import Adder
from reelquant.runtime.engines.tensorrt.device import Device, DeviceArray, Memory
from reelquant.runtime.engines.tensorrt.session import TensorRtSession

Floats = NDArray[np.float32]
_FLOAT = "FLOAT"


class TensorRtAdder(Adder):
    """Adds with ``session``, the engine of :func:`reelquant.quant.graph.sum_graph.sum_graph` for arrays of ``shape``.

    Memory of sums that nobody refers to any more is used again: a step takes none.
    """

    def __init__(self, device: Device, session: TensorRtSession, shape: tuple[int, ...]) -> None:
        self._device, self._session, self.shape = device, session, shape
        self._arrays = [name for name in session.inputs if name != "coefficients"]
        self._free: list[Memory] = []
        self._nothing = self.put(np.zeros(shape, np.float32))
        # What the transformer reads, always at one address: its work may be recorded with it.
        self._fed = DeviceArray(device.cuda, (1, *shape), _FLOAT)

    def put(self, array: Floats) -> DeviceArray:
        made, cuda = self._new(), self._device.cuda
        host = np.ascontiguousarray(array, np.float32)
        with self._device.lock:
            cuda.to_device(made.address, host, self._device.stream)
            cuda.synchronize(self._device.stream)  # until then the array must stay as it is
        return self._returned(made)

    def add(self, terms: Sequence[tuple[float, Value]]) -> tuple[DeviceArray, float]:
        """As :meth:`Adder.add`; more terms than the engine takes are added up in turns.

        Raises:
            EngineError: CUDA or TensorRT gave up.
        """
        left = list(terms)
        while len(left) > len(self._arrays):
            first, left = left[: len(self._arrays)], left[len(self._arrays) :]
            left.insert(0, (1.0, self._added(first)[0]))
        return self._added(left)

    def copied(self, value: Value) -> DeviceArray:
        made = self._new()
        self._copy(cast(DeviceArray, value), made)
        return self._returned(made)

    def fed(self, value: Value) -> DeviceArray:
        self._copy(cast(DeviceArray, value), self._fed)
        return self._fed

    def host(self, value: Value) -> Floats:
        found = np.empty(self.shape, np.float32)
        with self._device.lock:
            self._device.cuda.to_host(found, cast(DeviceArray, value).address, self._device.stream)
            self._device.cuda.synchronize(self._device.stream)
        return found

    def rest(self) -> None:
        self._free.clear()

    def _added(self, terms: Sequence[tuple[float, Value]]) -> tuple[DeviceArray, float]:
        coefficients = np.zeros(len(self._arrays), np.float32)
        coefficients[: len(terms)] = [coefficient for coefficient, _ in terms]
        values = [value for _, value in terms] + [self._nothing] * (len(self._arrays) - len(terms))
        fed = dict(zip(self._arrays, values, strict=True))
        results, kept = self._session.run_keeping(
            {"coefficients": coefficients, **fed}, lambda name: name == "total", {"total": self._new()}
        )
        total = cast(DeviceArray, kept["total"])
        return self._returned(total), float(results["squares"][0])

    def _copy(self, value: DeviceArray, place: DeviceArray) -> None:
        size = 4 * int(np.prod(self.shape))
        with self._device.lock:
            self._device.cuda.copy(place.address, value.address, size, self._device.stream)

    def _new(self) -> DeviceArray:
        values = (int(np.prod(self.shape)),)
        if self._free:
            return DeviceArray(self._device.cuda, values, _FLOAT, self._free.pop())
        return DeviceArray(self._device.cuda, values, _FLOAT)

    def _returned(self, array: DeviceArray) -> DeviceArray:
        """``array``, whose memory is free again when nobody refers to it."""
        weakref.finalize(array, self._free.append, array.memory).atexit = False
        return array
