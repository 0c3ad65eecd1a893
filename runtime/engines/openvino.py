"""OpenVINO on the CPU: the default engine where there is no GPU."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from reelquant.runtime.engine import Array, EnginePlan, Feeds, run_failed
from reelquant.runtime.errors import BundleError, MissingExtra
from reelquant.runtime.memory import give_back_at_once


class _OpenVinoPlan:
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

    def run(self, feeds: Feeds, into: Feeds = MappingProxyType({})) -> dict[str, Array]:
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
        self._compiled = _core().compile_model(model, "CPU", self._options)
        self._request = self._compiled.create_infer_request()


def _name(port: Any) -> str:
    """The ONNX graph's own name: a tensor that a no-op hands on has several, and ``any_name`` is any of them."""
    name = str(port.get_node().get_friendly_name()).removesuffix("/sink_port_0")
    return name if name in port.get_names() else str(port.any_name)


def version() -> str:
    openvino = _module()
    return str(openvino.get_version()).split("-")[0]


def devices() -> str:
    return ", ".join(_core().available_devices)


def build(graph: Path, threads: int | None = None) -> None:
    """Compile ``graph`` once, so that a graph this engine cannot run fails here and not at a user's request."""
    open(graph, threads)


def open(graph: Path, threads: int | None = None, lean: bool = False) -> EnginePlan:
    """Compile an ONNX file (fp32, INT8 or FP8 Q/DQ) for the CPU; with ``lean`` at its first run, and again whenever the
    shapes change.

    Raises:
        MissingExtra: openvino is not installed.
        BundleError: OpenVINO refuses the graph.
    """
    # The graph says its own numerics: without these, a CPU with bf16 units would silently compute fp32 graphs in bf16,
    # and what is fed to linears with INT8 weights would silently be quantized too.
    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "PERFORMANCE_HINT": "LATENCY",
    }
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    try:
        return _OpenVinoPlan(graph, options, lean)
    except RuntimeError as error:
        raise BundleError(f"OpenVINO {version()} cannot load {graph}: {error}") from error


@cache
def _core() -> Any:
    """The one Core of this process, which is never given up.

    A Core's CPU plugin gives the thread a stack for signal handlers, and takes it away with it. Of two Cores that go in
    the order they came, the second puts the first one's back, which is gone: the next Ctrl-C is a segmentation fault
    (seen with 2026.4).
    """
    return _module().Core()


def _module() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise MissingExtra("openvino", "openvino") from error
    return openvino
