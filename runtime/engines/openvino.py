"""OpenVINO on the CPU: the default engine where there is no GPU."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from reelquant.runtime.engines.engine import EngineReport, run_failed
from reelquant.runtime.engines.memory import EngineMemory, MemoryModel
from reelquant.runtime.engines.onnx_engine import OnnxEngine
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.precision_notes import Note, cpu_notes
from reelquant.runtime.engines.session import Array, Feeds, HostSession, Session
from reelquant.runtime.errors import BundleError, imported
from reelquant.runtime.machine.cpu_units import instruction_sets, is_arm
from reelquant.runtime.machine.memory import give_back_at_once

# The graph says its own numerics: without these, a CPU with bf16 units would silently compute fp32 graphs in bf16, and what
# is fed to linears with INT8 weights would silently be quantized too.
_OPTIONS: dict[str, Any] = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    "PERFORMANCE_HINT": "LATENCY",
}


class OpenVino(OnnxEngine):
    """The engine; its kernels are chosen by what this CPU has."""

    name = package = "openvino"
    # It maps the file and repacks its linears; its attention is fused.
    memory = EngineMemory(
        process=140_000_000,
        high=MemoryModel(1.8, 2.5),
        quantized=MemoryModel(1.15, 2.5),
        vae={"decoder": MemoryModel(2.06, 1.05), "encoder": MemoryModel(2.0, 2.3)},
    )

    def version(self) -> str:
        return str(_module().get_version()).split("-")[0]

    def inspect(self, module: ModuleType) -> EngineReport:
        version, devices = str(module.get_version()).split("-")[0], module.Core().available_devices
        if "CPU" in devices:
            return EngineReport(self.name, True, version, ", ".join(devices), "", "")
        again = self.remedy(again=True)
        return EngineReport(self.name, False, version, ", ".join(devices), "its CPU plugin is missing", again)

    def precision_notes(self) -> tuple[Note, ...]:
        exact = "avx512f" in instruction_sets()  # where its INT8 kernels gain on 7-bit weights
        return cpu_notes(not saturates(), saved="memory, not time", reduced_is_faster=exact)

    def fast_int8_convolutions(self) -> bool:
        """On x86 with VNNI or without; elsewhere nobody has measured it."""
        return not is_arm()

    def open_onnx(self, graph: Path, options: EngineOptions, lean: bool = False) -> Session:
        """Compile an ONNX file (fp32, INT8 or FP8 Q/DQ) for the CPU; with ``lean`` at its first run, and again whenever the
        shapes change.

        Raises:
            MissingExtra: openvino is not installed.
            BundleError: OpenVINO refuses the graph.
        """
        self.refuse_device(options)
        hints = dict(_OPTIONS)
        if threads := options.cpu_threads():
            hints["INFERENCE_NUM_THREADS"] = threads
        try:
            return _OpenVinoSession(graph, hints, lean)
        except RuntimeError as error:
            raise BundleError(f"OpenVINO {self.version()} cannot load {graph}: {error}") from error


class _OpenVinoSession(HostSession):
    """A graph compiled for every shape, or, where ``lean``, for the shapes of its last run: then memory is planned for
    those alone.
    """

    def __init__(self, graph: Path, options: Mapping[str, Any], lean: bool) -> None:
        self._graph, self._options, self._lean = graph, options, lean
        model = _core().read_model(str(graph))
        self.inputs = tuple(_name(port) for port in model.inputs)
        self.outputs = tuple(_name(port) for port in model.outputs)
        self._shapes: list[tuple[int, ...]] | None = None
        self._compiled: Any = None
        self._request: Any = None
        if lean:
            give_back_at_once()
        else:
            self._compile(model)

    def compute(self, feeds: Feeds, into: Feeds) -> dict[str, Array]:
        arrays = [np.ascontiguousarray(feeds[name]) for name in self.inputs]
        try:
            if self._lean:
                self._compile_for([array.shape for array in arrays])
            # A request of its own where results have a place, or its next run would write there too.
            request = self._compiled.create_infer_request() if into else self._request
            for i, name in enumerate(self.outputs):
                if name in into:
                    request.set_output_tensor(i, _module().Tensor(into[name], shared_memory=True))
            results = request.infer(arrays, share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            raise run_failed("OpenVINO", self._graph, error) from error
        # The request owns its output buffers and the next call overwrites them.
        return {
            name: into[name] if name in into else np.array(results[i], order="C", copy=True)
            for i, name in enumerate(self.outputs)
        }

    def _compile_for(self, shapes: list[tuple[int, ...]]) -> None:
        if shapes == self._shapes:
            return
        self._compiled = self._request = self._shapes = None
        from openvino import opset13

        model = _core().read_model(str(self._graph))
        for port, shape in zip(model.inputs, shapes, strict=True):
            # Behind the input, not of it: for an input of known shape memory is taken when the graph is compiled.
            users = port.get_target_inputs()
            known = opset13.reshape(port, opset13.constant(np.array(shape, np.int64)), special_zero=False)
            for user in users:
                user.replace_source_output(known.output(0))
        model.validate_nodes_and_infer_types()
        self._compile(model)
        self._shapes = shapes

    def _compile(self, model: Any) -> None:
        options = {**self._options, **_IN_FLOAT} if _overflows(model) and saturates() else self._options
        self._compiled = _core().compile_model(model, "CPU", options)
        self._request = self._compiled.create_infer_request()


# Q/DQ is then computed as the graph says it, and the products in float: weights stay in 8 bit, exact everywhere.
_IN_FLOAT = {"LP_TRANSFORMS_MODE": "NO"}
# Two products of an unsigned byte and a weight up to this fit into 16 bits: 2 · 255 · 64 < 2¹⁵.
_FITS = 64


def _overflows(model: Any) -> bool:
    """Whether INT8 products of ``model`` could overflow 16-bit sums: its activations are quantized, and a weight is large."""
    operators = model.get_ops()
    if not any(operator.get_type_name() == "FakeQuantize" for operator in operators):
        return False
    constants = (operator for operator in operators if operator.get_type_name() == "Constant")
    weights = (constant.data for constant in constants if constant.get_element_type().get_type_name() == "i8")
    return any(weight.size and (weight.max() > _FITS or weight.min() < -_FITS) for weight in weights)


@cache
def saturates() -> bool:
    """Whether OpenVINO's INT8 kernels on this CPU add products in 16 bits, which overflow without a word.

    They do on x86 without VNNI (``vpmaddubsw``: oneDNN's guide on INT8, "saturation"). One small product is computed and
    looked at, so that it is true of whatever kernels this version takes.
    """
    _module()
    from openvino import Model, opset13

    size, largest = 64, 127
    x = opset13.parameter([1, size], np.float32)
    ends = [opset13.constant(np.float32(end)) for end in (-largest - 1, largest)]
    quantized = opset13.fake_quantize(x, *ends, *ends, 256)
    weight = opset13.convert(opset13.constant(np.full((size, size), largest, np.int8)), "f32")
    scaled = opset13.multiply(weight, opset13.constant(np.ones((1, size), np.float32)))
    model = Model([opset13.matmul(quantized, scaled, False, False)], [x])
    compiled = _core().compile_model(model, "CPU", _OPTIONS)
    found = compiled([np.full((1, size), largest, np.float32)])[0]
    return bool(np.any(found != size * largest**2))


def _name(port: Any) -> str:
    """The ONNX graph's own name: a tensor that a no-op hands on has several, and ``any_name`` is any of them."""
    name = str(port.get_node().get_friendly_name()).removesuffix("/sink_port_0")
    return name if name in port.get_names() else str(port.any_name)


@cache
def _core() -> Any:
    """The one Core of this process, which is never given up.

    A Core's CPU plugin gives the thread a stack for signal handlers, and takes it away with it. Of two Cores that go in
    the order they came, the second puts the first one's back, which is gone: the next Ctrl-C is a segmentation fault
    (seen with 2026.4).
    """
    return _module().Core()


def _module() -> Any:
    return imported("openvino", "openvino")
