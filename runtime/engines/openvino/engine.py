"""OpenVINO on the CPU: the default engine where there is no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from reelquant.runtime.engines.engine import EngineReport
from reelquant.runtime.engines.memory import EngineMemory, MemoryModel
from reelquant.runtime.engines.onnx_engine import OnnxEngine
from reelquant.runtime.engines.openvino.kernels import module, saturates
from reelquant.runtime.engines.openvino.session import OpenVinoSession
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.precision_notes import Note, cpu_notes
from reelquant.runtime.engines.session import Session
from reelquant.runtime.errors import BundleError
from reelquant.runtime.machine.cpu_units import instruction_sets, is_arm, threads_to_start


class OpenVino(OnnxEngine):
    """The engine; its kernels are chosen by what this CPU has."""

    name = package = "openvino"
    # It maps the file and repacks its linears; its attention is fused, and memory is planned for known shapes.
    memory = EngineMemory(
        process=140_000_000,
        high=MemoryModel(1.98, 1.05),
        quantized=MemoryModel(2.05, 0.65),
        vae={"decoder": MemoryModel(2.06, 1.05), "encoder": MemoryModel(2.0, 2.3)},
    )

    def version(self) -> str:
        return str(module().get_version()).split("-")[0]

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
        """Open an ONNX file (fp32, INT8 or FP8 Q/DQ) for the CPU; it is compiled at its first run, for the shapes of that, and
        again for others. What was compiled is kept for some of these, with ``lean`` for the last alone.

        Raises:
            MissingExtra: openvino is not installed.
            BundleError: OpenVINO refuses the graph.
        """
        return self._opened(graph, options, lean)

    def open_bundled(self, graph: Path, options: EngineOptions, lean: bool) -> Session:
        """As :meth:`open_onnx`; what is compiled is kept for later processes (:mod:`reelquant.runtime.engines.openvino.compiled`)."""
        return self._opened(graph, options, lean, cached=True)

    def check_graph(self, graph: Path, options: EngineOptions) -> None:
        session = self._opened(graph, options, lean=True)
        with self._refusal(graph):
            session.try_to_compile()

    def _opened(self, graph: Path, options: EngineOptions, lean: bool, cached: bool = False) -> OpenVinoSession:
        self.refuse_device(options)
        with self._refusal(graph):
            return OpenVinoSession(graph, options.cpu_threads() or threads_to_start(), lean, cached)

    @contextmanager
    def _refusal(self, graph: Path) -> Iterator[None]:
        """Raises:
        BundleError: OpenVINO refuses ``graph`` in this block.
        """
        try:
            yield
        except RuntimeError as error:
            raise BundleError(f"OpenVINO {self.version()} cannot load {graph}: {error}") from error
