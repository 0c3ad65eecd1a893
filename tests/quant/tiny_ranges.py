"""Ranges of a graph on given inputs, as calibration makes them: with channels and histograms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from reelquant.quant.calibration.calibrate import Recorder, quantizable_values
from reelquant.quant.calibration.ranges import Provenance, Ranges
from reelquant.quant.graph.linears import linear_nodes
from reelquant.quant.passes.observe import observe
from tests.quant.engines import run
from tests.quant.tiny import Array


def calibrated(graph: ir.Model, fed: dict[str, Array], folder: Path) -> Ranges:
    """``graph`` is changed."""
    linears = linear_nodes(graph)
    observe(graph, quantizable_values(graph), {linear.activation: linear.shape[0] for linear in linears})
    recorder = Recorder()
    batch = len(next(iter(fed.values())))
    recorder.see(0, {"timestep": np.full(batch, 500)}, run(graph, "onnxruntime", fed, folder))
    return recorder.ranges(Provenance("t2v", 7, 1, "ab" * 32, 1, 9, 32, 48, "onnxruntime", "1", "cd" * 32))
