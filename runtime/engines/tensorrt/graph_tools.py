"""What a build needs of ONNX files, which the runtime does not read: of whoever offers it, which is reelquant.quant.

The tools are entry points (pyproject.toml), so that the runtime names nothing that stands above it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.options import BuildSpec
from reelquant.runtime.engines.tensorrt.shapes import Symbols
from reelquant.runtime.errors import MissingExtra

GROUP = "reelquant.graph_tools"


def lint(bundle: Bundle, spec: BuildSpec) -> list[str]:
    """What TensorRT would leave unfused, in words.

    Raises:
        BundleError: there is what TensorRT would refuse.
    """
    check = _tool("lint")
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
    copy = _tool("static_copy")
    if copy is None:
        raise MissingExtra("building a graph for one size at a time needs onnx-ir, which", "export")
    return copy


def sum_graph() -> bytes | None:
    """An ONNX file that adds up arrays (:func:`reelquant.quant.graph.sum_graph.sum_graph`); None where onnx-ir is not installed."""
    make = _tool("sum_graph")
    made: bytes | None = make() if make is not None else None
    return made


def _tool(name: str) -> Callable[..., Any] | None:
    """The tool, or None where what its module imports is not installed."""
    for point in entry_points(group=GROUP, name=name):
        try:
            tool: Callable[..., Any] = point.load()
        except ModuleNotFoundError as error:
            if error.name and error.name.split(".")[0] == "reelquant":
                raise
            return None
        return tool
    return None
