"""What a build needs of ONNX files, which the runtime does not read: of whoever offers it, which is reelquant.quant.

The tools are entry points (pyproject.toml), so that the runtime names nothing that stands above it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

GROUP = "reelquant.graph_tools"


def graph_tool(name: str) -> Callable[..., Any] | None:
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
