"""What a TensorRT build needs of ONNX files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.graph_tools import graph_tool
from reelquant.runtime.engines.options import BuildSpec
from reelquant.runtime.engines.tensorrt.shapes import Symbols
from reelquant.runtime.errors import MissingExtra


def lint(bundle: Bundle, spec: BuildSpec) -> list[str]:
    """What TensorRT would leave unfused, in words.

    Raises:
        BundleError: there is what TensorRT would refuse.
    """
    check = graph_tool("lint")
    if check is None:
        return [
            "onnx-ir is not installed, so the builder alone judges the graphs, without lint, and latents will come to the host at every step"
        ]
    warnings: list[str] = check(bundle, spec)
    return warnings


def static_copier() -> Callable[[Path, Symbols], bytes]:
    """What makes an ONNX file with its shapes at one size, which TensorRT reads some graphs through, NVFP4's for one.

    Raises:
        MissingExtra: onnx-ir is not installed.
    """
    copy = graph_tool("static_copy")
    if copy is None:
        raise MissingExtra("building a graph for one size at a time needs onnx-ir, which", "export")
    return copy


def sum_graph() -> bytes | None:
    """An ONNX file that adds up arrays (:func:`reelquant.quant.graph.sum_graph.sum_graph`); None where onnx-ir is not installed."""
    make = graph_tool("sum_graph")
    made: bytes | None = make() if make is not None else None
    return made
