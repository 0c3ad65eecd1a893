"""ONNX Runtime on the CPU: the reference executor, for parity, for calibration, and wherever OpenVINO is not."""

from __future__ import annotations

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
from reelquant.runtime.errors import BundleError
from reelquant.runtime.machine.cpu_units import has_int8_units, is_arm, threads_to_start
from reelquant.runtime.machine.gpus import gpus
from reelquant.runtime.machine.memory import give_back_at_once


class OnnxRuntime(OnnxEngine):
    """The engine: on the CPU, whatever this build of ONNX Runtime could use besides (:mod:`reelquant.runtime.engines.onnxruntime_cuda`)."""

    name = package = "onnxruntime"
    memory = EngineMemory(
        process=90_000_000,
        high=MemoryModel(0.95, 4.6, 0.75),
        quantized=MemoryModel(0.85, 4.6, 0.75),
        vae={"decoder": MemoryModel(1.09, 0.69), "encoder": MemoryModel(1.03, 0.97)},
    )

    def inspect(self, module: ModuleType) -> EngineReport:
        version, found = str(module.__version__), gpus()
        if not found.names:
            return EngineReport(self.name, True, version, "CPU", "", "")
        there = "CUDAExecutionProvider" in module.get_available_providers()
        remedy = "run with --engine onnxruntime-cuda" if there else f"on the GPU: {self.remedy('onnxruntime-cuda')}"
        return EngineReport(
            self.name, True, version, "CPU", "it computes on the CPU alone and leaves the GPU unused", remedy
        )

    def precision_notes(self) -> tuple[Note, ...]:
        return cpu_notes(has_int8_units(), saved="disk, not time or memory")

    def open_onnx(self, graph: Path, options: EngineOptions, lean: bool = False) -> Session:
        """Open an ONNX file.

        With ``lean``, weights are not repacked for speed, which would hold a second copy of them, and memory is taken and
        given back value by value: the arena that saves doing so keeps what it ever took, in sizes that double.

        Raises:
            MissingExtra: onnxruntime is not installed.
            BadInput: ``options`` name a GPU.
            BundleError: ONNX Runtime refuses the graph.
        """
        self.refuse_device(options)
        ort = self.module()
        chosen = new_options(ort, options)
        if lean:
            chosen.add_session_config_entry("session.disable_prepacking", "1")
            chosen.enable_cpu_mem_arena = chosen.enable_mem_pattern = False
            give_back_at_once()
        for entry, value in _int8_entries(graph).items():
            chosen.add_session_config_entry(entry, value)
        if _has_fp8(graph):
            # A fusion of FP8 Q/DQ makes a graph that its own checker refuses (seen with 1.31).
            chosen.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        try:
            session = ort.InferenceSession(str(graph), chosen, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exception classes share no public base but Exception
            raise cannot_load(self.version(), graph, error) from error
        return _OnnxRuntimeSession(session, graph)


def new_options(ort: ModuleType, options: EngineOptions) -> Any:
    """Options of a session, whatever it computes on: as many threads as are asked for, and numbers as the graph says."""
    chosen = ort.SessionOptions()
    chosen.log_severity_level = 3
    # By default, what is fed to linears with INT8 weights would be quantized too.
    chosen.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    chosen.intra_op_num_threads = options.cpu_threads() or threads_to_start() or 0
    return chosen


def cannot_load(version: str, graph: Path, error: Exception) -> BundleError:
    """What a user is told when ONNX Runtime refuses ``graph``."""
    return BundleError(f"ONNX Runtime {version} cannot load {graph}: {error}")


class _OnnxRuntimeSession(HostSession):
    def __init__(self, session: Any, graph: Path) -> None:
        self._session, self._graph = session, graph
        self.inputs = tuple(value.name for value in session.get_inputs())
        self.outputs = tuple(value.name for value in session.get_outputs())

    def compute(self, feeds: Feeds, into: Feeds) -> dict[str, Array]:
        arrays = {name: np.ascontiguousarray(feeds[name]) for name in self.inputs}
        try:
            results = self._bound(arrays, into) if into else self._session.run(None, arrays)
        except Exception as error:  # onnxruntime's exception classes share no public base but Exception
            raise run_failed("ONNX Runtime", self._graph, error) from error
        return dict(zip(self.outputs, results, strict=True))

    def _bound(self, arrays: Feeds, into: Feeds) -> list[Array]:
        binding = self._session.io_binding()
        for name, value in arrays.items():
            binding.bind_cpu_input(name, value)
        for name in self.outputs:
            if name in into:
                place = into[name]
                binding.bind_output(name, "cpu", 0, place.dtype, place.shape, place.ctypes.data)
            else:
                binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        results = zip(self.outputs, binding.get_outputs(), strict=True)
        return [into[name] if name in into else value.numpy() for name, value in results]


def _int8_entries(graph: Path) -> dict[str, str]:
    """How INT8 products are computed: exactly as the graph says, and in the fastest kernels that do so.

    On Arm both factors are signed. On x86 ONNX Runtime's fast kernels take unsigned activations; it shifts ours, but for
    those that several linears share (to_q, to_k, to_v), which it computes in float. Without VNNI those kernels add in 16 bits and
    saturate (its guide to quantization, "when and why do I need to try U8U8"), and its exact ones take twice fp32's time:
    there all is computed in float, unless the weights fit.
    """
    if is_arm():
        return {"session.qdqisint8allowed": "1"}
    data = graph.read_bytes()
    quantized = (
        b"QuantizeLinear" in data and b"int8_zero_point" in data
    )  # activations, in the names that our passes give
    if quantized and b"int8_zero_point_" in data and not has_int8_units():
        return {"session.disable_quant_qdq": "1"}
    return {"session.qdqisint8allowed": "0"}


def _has_fp8(graph: Path) -> bool:
    """Whether the graph names our FP8 zero points: weights live beside the ONNX file, so it is small and has the names."""
    return b"fp8_zero_point" in graph.read_bytes()
