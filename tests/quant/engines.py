"""Run a graph of onnx-ir as users do: saved beside its weights, opened by an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from reelquant.runtime.engine import ENGINES, open_plan

EACH_ENGINE = pytest.mark.parametrize("engine", sorted(ENGINES))


def run(model: ir.Model, engine: str, fed: dict[str, NDArray[Any]], folder: Path) -> dict[str, NDArray[Any]]:
    ir.save(model, folder / "graph.onnx", external_data="weights.bin")
    return open_plan(engine, folder / "graph.onnx", threads=1).run(fed)
