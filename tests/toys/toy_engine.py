"""An engine in one file, as another package would bring it: ONNX Runtime without any of its optimizations."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from reelquant.runtime.engines.engine import EngineReport
from reelquant.runtime.engines.onnx_engine import OnnxEngine
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.session import Array, Session, Values


class ToyEngine(OnnxEngine):
    name, package = "toy", "onnxruntime"

    def inspect(self, module: ModuleType) -> EngineReport:
        return EngineReport(self.name, True, str(module.__version__), "CPU", "", "")

    def open_onnx(self, graph: Path, options: EngineOptions, lean: bool = False) -> Session:
        self.refuse_device(options)
        ort = self.module()
        chosen = ort.SessionOptions()
        chosen.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        chosen.intra_op_num_threads = options.cpu_threads() or 0
        return ToySession(ort.InferenceSession(str(graph), chosen, providers=["CPUExecutionProvider"]))


class ToySession(Session):
    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs = tuple(value.name for value in session.get_inputs())
        self.outputs = tuple(value.name for value in session.get_outputs())

    def run(self, feeds: Values) -> dict[str, Array]:
        given = {name: feeds[name] for name in self.inputs}
        return dict(zip(self.outputs, self._session.run(None, given), strict=True))
