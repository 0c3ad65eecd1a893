"""The one interface every engine answers, and the table of those that exist."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from numpy.typing import NDArray

from reelquant.runtime.engines.tensorrt.flavor import FLAVORS
from reelquant.runtime.errors import BadInput, EngineError

Array = NDArray[Any]
Feeds = Mapping[str, Array]

# Engines that read ONNX → their module under reelquant.runtime.engines, imported only when it is asked for.
ENGINES = {"openvino": "openvino", "onnxruntime": "onnxruntime"}
DEFAULT_ENGINE = "openvino"
# What all others are held against: ONNX Runtime computes every graph of ours on any CPU, exactly as it says.
REFERENCE_ENGINE = "onnxruntime"


class Plan(Protocol):
    """One loaded graph."""

    @property
    def inputs(self) -> tuple[str, ...]: ...

    @property
    def outputs(self) -> tuple[str, ...]: ...

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Compute every output; arrays are C-contiguous and owned by the caller.

        Raises:
            EngineError: the engine gave up.
        """
        ...


class EnginePlan(Plan, Protocol):
    """A plan whose results can be put into arrays that are there."""

    def run(self, feeds: Feeds, into: Feeds = MappingProxyType({})) -> dict[str, Array]:
        """As a plan's ``run``; the outputs that ``into`` names are written into its arrays.

        Those are C-contiguous and of the output's shape and dtype. Such an array may be fed too, where the graph computes
        that output from what it has read of that input.
        """
        ...


def check_engine(name: str) -> str:
    """Return ``name`` when it is an engine of this version.

    Raises:
        BadInput: it is not; the message lists those that are.
    """
    if name not in ENGINES and name not in FLAVORS:
        raise BadInput(f"unknown engine {name!r}; one of {', '.join([*ENGINES, *FLAVORS])}")
    return name


def is_compiled(name: str) -> bool:
    """Whether an engine's graphs are compiled ahead to files, for chosen GPUs and sizes: TensorRT's are."""
    return name in FLAVORS


def engine_module(name: str) -> Any:
    """The module of an engine that reads ONNX: ``open``, ``build``, ``version`` and ``devices``, its package imported by none of them
    before it is called.

    Raises:
        BadInput: it is no such engine.
    """
    if name not in ENGINES:
        raise BadInput(f"{name!r} does not run ONNX graphs; one of {', '.join(ENGINES)} does")
    return import_module(f"reelquant.runtime.engines.{ENGINES[name]}")


def engine_version(name: str) -> str:
    """The version of an engine's package.

    Raises:
        BadInput: the engine is unknown.
        MissingExtra: its package is not installed.
    """
    return FLAVORS[name].version() if is_compiled(check_engine(name)) else str(engine_module(name).version())


def thread_count(threads: int | None) -> int | None:
    """``threads``, or what the environment variable REELQUANT_THREADS says; None leaves it to the engine.

    Raises:
        BadInput: that is no number of threads.
    """
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise BadInput(f"threads is {threads!r}; give a number of CPU threads, or None for the engine's choice")
    text = os.environ.get("REELQUANT_THREADS", "")
    if threads is not None or not text:
        return threads
    if not text.isdecimal() or int(text) < 1:
        raise BadInput(f"REELQUANT_THREADS is {text!r}; give a number of CPU threads, or unset it")
    return int(text)


def installed_engine() -> str:
    """The default engine where its package is installed, else the reference engine."""
    return DEFAULT_ENGINE if find_spec(ENGINES[DEFAULT_ENGINE]) else REFERENCE_ENGINE


def open_plan(engine: str, graph: Path, threads: int | None = None, lean: bool = False) -> EnginePlan:
    """Load an ONNX graph on an engine; with ``lean`` it takes less memory, and more time where shapes change from run to
    run.

    Raises:
        BadInput: the engine is unknown.
        MissingExtra: its package is not installed.
        BundleError: the engine refuses the graph.
    """
    plan: EnginePlan = engine_module(engine).open(graph, threads=threads, lean=lean)
    return plan


def run_failed(engine: str, graph: Path, error: Exception) -> EngineError:
    """What a user is told when ``engine`` fails inside a run of ``graph``."""
    why = " ".join(str(error).split())[:500]
    return EngineError(
        f"{engine} failed while it ran {graph}: {why}; if memory was short, a smaller size or fewer frames need less, "
        "else try another engine and report this one"
    )
