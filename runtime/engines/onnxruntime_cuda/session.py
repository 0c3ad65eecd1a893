"""A graph on ONNX Runtime with its values on a device: constants are brought there once, and what is kept never comes back."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np

from reelquant.runtime.engines.engine import run_failed
from reelquant.runtime.engines.session import Array, Feeds, Session, Value, Values


class DeviceValue:
    """An array on the device; ``dtype`` is ONNX Runtime's name of it: "float", "float16", "bfloat16", "int64".

    ``source`` is the host's array that it is a copy of, which stays alive with it; None of what was computed.
    """

    def __init__(self, value: Any, source: Array | None = None) -> None:
        self.value, self.source = value, source
        self.shape: tuple[int, ...] = tuple(value.shape())
        self.dtype: str = value.data_type().removeprefix("tensor(").removesuffix(")")


class DeviceSession(Session):
    """``loaded`` is an InferenceSession of ``module`` (onnxruntime); ``device`` is the type and number of where it computes.

    The same code runs with ("cpu", 0), where tests hold it against the host's session. With ``lean``, memory that a run took
    is given back after it.
    """

    def __init__(
        self, module: ModuleType, loaded: Any, graph: Path, device: tuple[str, int] = ("cpu", 0), lean: bool = False
    ) -> None:
        self._module, self._loaded, self._graph, self._device = module, loaded, graph, device
        self.inputs = tuple(value.name for value in loaded.get_inputs())
        self.outputs = tuple(value.name for value in loaded.get_outputs())
        self._put: weakref.WeakValueDictionary[int, DeviceValue] = weakref.WeakValueDictionary()
        self._options = None
        if lean:
            self._options = module.RunOptions()
            place = "cpu:0" if device[0] == "cpu" else f"gpu:{device[1]}"
            self._options.add_run_config_entry("memory.enable_memory_arena_shrinkage", place)

    def run(self, feeds: Values) -> dict[str, Array]:
        return self.run_keeping(feeds, lambda name: False)[0]

    def run_keeping(
        self, feeds: Values, keep: Callable[[str], bool], into: Values = MappingProxyType({})
    ) -> tuple[dict[str, Array], dict[str, Value]]:
        """As a session's ``run_keeping``. What is kept is a :class:`DeviceValue`, and those of ``into`` are written into. bf16 values,
        which NumPy has not, can be kept and not be returned.
        """
        places = {name: value for name, value in into.items() if isinstance(value, DeviceValue) and keep(name)}
        try:
            values = self._run(feeds, keep, places)
        except Exception as error:  # onnxruntime's exception classes share no public base but Exception
            raise run_failed("ONNX Runtime", self._graph, error) from error
        results: dict[str, Array] = {}
        kept: dict[str, Value] = {}
        for name, value in zip(self.outputs, values, strict=True):
            if name in places:
                kept[name] = places[name]
            elif keep(name):
                kept[name] = DeviceValue(value)
            else:
                results[name] = value.numpy()
        return results, kept

    def put(self, feeds: Feeds) -> Values:
        """Those of ``feeds`` that the graph reads, on the device. An array that is put again while its copy lives, as for both halves
        of guidance, is not copied again.
        """
        return {name: self._bring(value) for name, value in feeds.items() if name in self.inputs}

    def _bring(self, array: Array) -> DeviceValue:
        found = self._put.get(id(array))  # an id is an array's own as long as it lives, and the copy keeps it alive
        if found is None:
            value = self._module.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), *self._device)
            found = self._put[id(array)] = DeviceValue(value, array)
        return found

    def _run(self, feeds: Values, keep: Callable[[str], bool], places: Mapping[str, DeviceValue]) -> list[Any]:
        binding, held = self._loaded.io_binding(), []
        for name in self.inputs:
            value = feeds[name]
            if isinstance(value, DeviceValue):
                binding.bind_ortvalue_input(name, value.value)
                continue
            array = np.ascontiguousarray(value)
            held.append(array)  # until the run is done
            binding.bind_cpu_input(name, array)
        for name in self.outputs:
            if name in places:
                binding.bind_ortvalue_output(name, places[name].value)
            elif keep(name):
                binding.bind_output(name, *self._device)
            else:
                binding.bind_output(name, "cpu")
        self._loaded.run_with_iobinding(binding, self._options)
        values: list[Any] = binding.get_outputs()
        return values
