"""ONNX Runtime: the reference executor, for parity, for calibration, and wherever OpenVINO is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from reelquant.runtime.engine import Array, Feeds, Plan, run_failed
from reelquant.runtime.errors import BundleError, MissingExtra


class _OnnxRuntimePlan:
    def __init__(self, session: Any, graph: Path, lean: bool) -> None:
        self._session, self._graph = session, graph
        self._options = _module().RunOptions()
        if lean:
            self._options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self.inputs = tuple(value.name for value in session.get_inputs())
        self.outputs = tuple(value.name for value in session.get_outputs())

    def run(self, feeds: Feeds) -> dict[str, Array]:
        arrays = {name: np.ascontiguousarray(feeds[name]) for name in self.inputs}
        try:
            results = self._session.run(None, arrays, self._options)
        except Exception as error:  # onnxruntime's exception classes share no public base but Exception
            raise run_failed("ONNX Runtime", self._graph, error) from error
        return dict(zip(self.outputs, results, strict=True))


def version() -> str:
    return str(_module().__version__)


def devices() -> str:
    return ", ".join(name.removesuffix("ExecutionProvider") for name in _module().get_available_providers())


def build(graph: Path, threads: int | None = None) -> None:
    """Open ``graph`` once, so that a graph this engine cannot run fails here and not at a user's request."""
    open(graph, threads)


def open(graph: Path, threads: int | None = None, lean: bool = False) -> Plan:
    """Open an ONNX file on CUDA where this build of ONNX Runtime has it, else on the CPU.

    With ``lean``, weights are not repacked for speed, which would hold a second copy of them.

    Raises:
        MissingExtra: onnxruntime is not installed.
        BundleError: ONNX Runtime refuses the graph.
    """
    ort = _module()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Without this, INT8 linears that share an activation (to_q, to_k, to_v) are run in float.
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    # The graph says its own numerics: by default, what is fed to linears with INT8 weights would be quantized too.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if lean:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if threads:
        options.intra_op_num_threads = threads
    if _has_fp8(graph):
        # On the CPU a fusion of FP8 Q/DQ makes a graph that its own checker refuses (seen with 1.31).
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    available = ort.get_available_providers()
    providers = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in available]
    try:
        return _OnnxRuntimePlan(ort.InferenceSession(str(graph), options, providers=providers), graph, lean)
    except Exception as error:  # onnxruntime's exception classes share no public base but Exception
        raise BundleError(f"ONNX Runtime {version()} cannot load {graph}: {error}") from error


def _has_fp8(graph: Path) -> bool:
    """Whether the graph names our FP8 zero points: weights live beside the ONNX file, so it is small and has the names."""
    return b"fp8_zero_point" in graph.read_bytes()


def _module() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("onnxruntime", "onnxruntime") from error
    return onnxruntime
