"""OpenVINO on the CPU: the default engine where there is no GPU."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from reelquant.runtime.engine import Array, Feeds, Plan, run_failed
from reelquant.runtime.errors import BundleError, MissingExtra


class _OpenVinoPlan:
    def __init__(self, compiled: Any, graph: Path, lean: bool) -> None:
        self._request, self._graph = compiled.create_infer_request(), graph
        self._compiled = compiled if lean else None
        self.inputs = tuple(_name(port) for port in compiled.inputs)
        self.outputs = tuple(_name(port) for port in compiled.outputs)

    def run(self, feeds: Feeds) -> dict[str, Array]:
        arrays = {name: np.ascontiguousarray(feeds[name]) for name in self.inputs}
        try:
            results = self._request.infer(arrays)
        except RuntimeError as error:
            raise run_failed("OpenVINO", self._graph, error) from error
        # The request owns its output buffers and the next call overwrites them.
        arrays = {name: np.array(results[i], order="C", copy=True) for i, name in enumerate(self.outputs)}
        if self._compiled is not None:
            del results
            self._compiled.release_memory()
        return arrays


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


def open(graph: Path, threads: int | None = None, lean: bool = False) -> Plan:
    """Compile an ONNX file (fp32, INT8 or FP8 Q/DQ) for the CPU.

    Raises:
        MissingExtra: openvino is not installed.
        BundleError: OpenVINO refuses the graph.
    """
    core = _core()
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
        return _OpenVinoPlan(core.compile_model(str(graph), "CPU", options), graph, lean)
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
