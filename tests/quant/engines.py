"""Run a graph of onnx-ir as users do: saved beside its weights, opened by an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.registry import open_onnx
from tests.conftest import CPU_ENGINES

EACH_ENGINE = pytest.mark.parametrize("engine", CPU_ENGINES)


def run(model: ir.Model, engine: str, fed: dict[str, NDArray[Any]], folder: Path) -> dict[str, NDArray[Any]]:
    ir.save(model, folder / "graph.onnx", external_data="weights.bin")
    return open_onnx(engine, folder / "graph.onnx", EngineOptions(threads=1)).run(fed)
