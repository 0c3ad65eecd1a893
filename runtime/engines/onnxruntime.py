"""ONNX Runtime: the reference executor, for parity, for calibration, and wherever OpenVINO is not."""

from __future__ import annotations

from collections.abc import Sequence
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
from reelquant.runtime.errors import BadInput, BundleError, EngineError
from reelquant.runtime.machine.cpu_units import has_int8_units, is_arm, threads_to_start
from reelquant.runtime.machine.gpus import gpus
from reelquant.runtime.machine.memory import give_back_at_once


class OnnxRuntime(OnnxEngine):
    """The engine: on the first GPU, or the one that is named, where there is one and this build has CUDA, else on the CPU."""

    name = package = "onnxruntime"
    memory = EngineMemory(
        process=90_000_000,
        high=MemoryModel(0.95, 4.6, 0.75),
        quantized=MemoryModel(0.85, 4.6, 0.75),
        vae={"decoder": MemoryModel(1.09, 0.69), "encoder": MemoryModel(1.03, 0.97)},
    )

    def inspect(self, module: ModuleType) -> EngineReport:
        version, cuda = str(module.__version__), "CUDAExecutionProvider" in module.get_available_providers()
        found = gpus()
        devices = f"CUDA ({', '.join(found.names)}), CPU" if cuda and found.names else "CPU"
        if found.names and not cuda:
            reason = "built for CPUs alone: it leaves the GPU unused"
            return EngineReport(self.name, True, version, devices, reason, self.remedy("onnxruntime-gpu"))
        reason = f"built for CUDA, but {found.reason}: it runs on the CPU" if cuda and not found.names else ""
        return EngineReport(self.name, True, version, devices, reason, "")

    def on_cpu(self) -> bool:
        """Whether it runs graphs on the CPU: this build has no CUDA, or there is no GPU."""
        return "CUDAExecutionProvider" not in self.module().get_available_providers() or not gpus().names

    def precision_notes(self) -> tuple[Note, ...]:
        return cpu_notes(has_int8_units(), saved="disk, not time or memory") if self.on_cpu() else ()

    def open_onnx(self, graph: Path, options: EngineOptions, lean: bool = False) -> Session:
        """Open an ONNX file.

        With ``lean``, weights are not repacked for speed, which would hold a second copy of them, and memory is taken and
        given back value by value: the arena that saves doing so keeps what it ever took, in sizes that double.

        Raises:
            MissingExtra: onnxruntime is not installed.
            BadInput: there is no GPU of this number.
            BundleError: ONNX Runtime refuses the graph.
            EngineError: CUDA does not start.
        """
        ort, on_cpu = self.module(), self.on_cpu()
        if on_cpu:
            self.refuse_device(options)
        elif options.device >= len(gpus().names):
            raise BadInput(
                f"there is no GPU {options.device} here, only {', '.join(gpus().names)}; see: reelquant doctor"
            )
        chosen = ort.SessionOptions()
        chosen.log_severity_level = 3
        # The graph says its own numerics: by default, what is fed to linears with INT8 weights would be quantized too.
        chosen.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        if lean:
            chosen.add_session_config_entry("session.disable_prepacking", "1")
            chosen.enable_cpu_mem_arena = chosen.enable_mem_pattern = False
            give_back_at_once()
        chosen.intra_op_num_threads = options.cpu_threads() or threads_to_start() or 0
        for entry, value in _int8_entries(graph).items() if on_cpu else ():
            chosen.add_session_config_entry(entry, value)
        if _has_fp8(graph) and on_cpu:
            # On the CPU a fusion of FP8 Q/DQ makes a graph that its own checker refuses (seen with 1.31).
            chosen.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        providers: list[Any] = ["CPUExecutionProvider"]
        if not on_cpu:
            ort.preload_dlls()  # CUDA's libraries from their pip packages, which it does not find by itself
            # By default it would compute float32 graphs in TF32, which has fp16's 10 bits of mantissa.
            providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": 0, "device_id": options.device}))
        try:
            # No fallback: where CUDA fails to start, it would run on the CPU without a word.
            session = ort.InferenceSession(str(graph), chosen, providers=providers, enable_fallback=0)
        except Exception as error:  # onnxruntime's exception classes share no public base but Exception
            raise BundleError(f"ONNX Runtime {self.version()} cannot load {graph}: {error}") from error
        check_provider(session.get_providers(), providers, self.version())
        return _OnnxRuntimeSession(session, graph)


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


def check_provider(started: Sequence[str], wanted: Sequence[Any], version: str) -> None:
    """See that a session has the provider that was asked for first.

    Raises:
        EngineError: it has not, and would run on the CPU.
    """
    first = wanted[0] if isinstance(wanted[0], str) else wanted[0][0]
    if first not in started:
        raise EngineError(
            f"ONNX Runtime {version} has CUDA and cannot start it: its libraries are missing or are of another CUDA; install "
            "them with: pip install 'reelquant[onnxruntime-gpu]', or hide the GPU to run on the CPU: CUDA_VISIBLE_DEVICES="
        )


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
