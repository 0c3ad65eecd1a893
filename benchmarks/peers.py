"""Have a graph quantized by a peer, in the peers' own environment (``make peers``)."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from reelquant.quant.graph.graph_files import load_mapped

PEERS = tuple((peer, precision) for precision in ("int8", "fp8") for peer in ("onnxruntime", "modelopt", "nncf"))
PYTHON = Path(".venv-peers/bin/python")


def hand_over(work: Path, graph: Path, samples: Sequence[Mapping[str, NDArray[Any]]], linears: Sequence[str]) -> None:
    """Put into ``work`` what a peer quantizes: ``graph``, what it is calibrated on, and the nodes (all, if none is named)."""
    model = load_mapped(graph)
    inputs = [value.name or "" for value in model.graph.inputs]
    ir.save(model, work / "model.onnx")  # with its weights: not every peer keeps them in a file of their own
    arrays: dict[str, Any] = {f"{n}/{name}": fed[name] for n, fed in enumerate(samples) for name in inputs}
    np.savez(work / "samples.npz", **arrays)
    (work / "linears.txt").write_text("\n".join(linears), encoding="utf-8")


def quantized_by(peer: str, precision: str, work: Path, python: Path) -> Path:
    """The peer's graph of what lies in ``work``.

    Raises:
        RuntimeError: it fails; with what it wrote.
    """
    script = Path(__file__).with_name("peer_quantizers.py")
    ran = subprocess.run(
        [str(python), str(script), peer, precision, str(work)], capture_output=True, text=True, check=False
    )
    if ran.returncode != 0:
        raise RuntimeError(f"{peer} {precision} failed: {ran.stderr[-2000:]}")
    return next(
        work / name for name in (f"{peer}-{precision}.onnx", f"{peer}-{precision}.xml") if (work / name).exists()
    )
