"""Which engines there are: those of reelquant, and those that other packages bring.

A package brings an engine by an entry point of the group ``reelquant.engines``: the engine's name, and the object or class
(:class:`reelquant.runtime.engines.engine.Engine`) that is the engine.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from reelquant.runtime.engines.engine import REFERENCE_ENGINE, Engine, one_line
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.session import Session
from reelquant.runtime.errors import BadInput, EngineError

DEFAULT_ENGINE = "openvino"
GROUP = "reelquant.engines"
# Imported when asked for: opening a graph on a CPU imports nothing of TensorRT.
_OWN = {
    name: EntryPoint(name, f"reelquant.runtime.engines.{where}", GROUP)
    for name, where in {
        "openvino": "openvino.engine:OpenVino",
        "onnxruntime": "onnxruntime:OnnxRuntime",
        "onnxruntime-cuda": "onnxruntime_cuda.engine:OnnxRuntimeCuda",
        "tensorrt-rtx": "tensorrt.engine:rtx",
        "tensorrt": "tensorrt.engine:standard",
    }.items()
}


def engine_names() -> tuple[str, ...]:
    """The names of all engines, reelquant's own first."""
    return (*_OWN, *(point.name for point in _others()))


@cache
def get_engine(name: str) -> Engine:
    """The engine of this name; its package need not be installed.

    Raises:
        BadInput: there is none; the message lists those that are.
        EngineError: another package brings it, and fails to load.
    """
    point = _OWN.get(name) or next((point for point in _others() if point.name == name), None)
    if point is None:
        raise BadInput(f"unknown engine {name!r}; one of {', '.join(engine_names())}")
    try:
        made: Any = point.load()
        engine: Engine = made if isinstance(made, Engine) else made()
    except Exception as error:  # of another package, so anything
        raise EngineError(
            f"the engine {name} ({point.value}) does not load: {one_line(error)}; install its package again, or remove it"
        ) from error
    return engine


def onnx_engines() -> tuple[str, ...]:
    """The names of reelquant's own engines that run ONNX files."""
    return tuple(name for name in engine_names() if name in _OWN and get_engine(name).runs_onnx)


def installed_engine() -> Engine:
    """The default engine where its package is installed, else the reference engine."""
    default = get_engine(DEFAULT_ENGINE)
    return default if default.installed() else get_engine(REFERENCE_ENGINE)


def open_onnx(engine: str, graph: Path, options: EngineOptions | None = None, lean: bool = False) -> Session:
    """Load an ONNX file on the engine of this name.

    Raises:
        BadInput: there is no such engine, or it runs no ONNX files.
        MissingExtra: its package is not installed.
        BundleError: the engine refuses the graph.
    """
    return get_engine(engine).open_onnx(graph, options or EngineOptions(), lean)


@cache
def _others() -> tuple[EntryPoint, ...]:
    return tuple(point for point in entry_points(group=GROUP) if point.name not in _OWN)
