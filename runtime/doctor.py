"""Which engines can run on this machine, why the others cannot, and what would mend it."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from types import ModuleType

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.cpu_units import cpu_info, instruction_sets, read_lines
from reelquant.runtime.engine import ENGINES, engine_module
from reelquant.runtime.engines.tensorrt.flavor import FLAVORS
from reelquant.runtime.engines.tensorrt.loadable import why_not
from reelquant.runtime.engines.tensorrt.targets import unsupported
from reelquant.runtime.errors import MissingExtra
from reelquant.runtime.gpus import Gpus, gpus
from reelquant.runtime.precision_notes import Note, notes


@dataclass(frozen=True)
class EngineReport:
    """One engine here. ``reason`` says why not, or what is worth knowing; ``remedy`` what to do; both may be empty."""

    engine: str
    usable: bool
    version: str | None
    devices: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class Machine:
    """``cores`` are the logical CPUs this process may use; ``memory`` the bytes it may, 0 when not known."""

    cpu: str
    cores: int
    memory: int
    instruction_sets: tuple[str, ...]
    python: str
    reelquant: str


def diagnose() -> list[EngineReport]:
    """Try every engine there is a package for. Never raises for one that is missing or broken."""
    found = gpus()
    return [
        _report("openvino", "openvino", _openvino),
        _report("onnxruntime", "onnxruntime", lambda module: _onnxruntime(module, found)),
        _report("tensorrt-rtx", "tensorrt_rtx", lambda module: _tensorrt(module, found, "tensorrt-rtx")),
        _report("tensorrt", "tensorrt", lambda module: _tensorrt(module, found, "tensorrt")),
    ]


def precisions(reports: Sequence[EngineReport]) -> dict[str, tuple[Note, ...]]:
    """What each precision is worth on this CPU, by engine: of those that are usable and run on one."""
    usable = (report.engine for report in reports if report.usable and report.engine in ENGINES)
    return {engine: notes(engine) for engine in usable if engine_module(engine).on_cpu()}


def compiled_engines(bundle: Bundle, found: Gpus) -> dict[str, str | None]:
    """Why the engines that were built into ``bundle`` would not load here, by engine; None where they would."""
    reasons: dict[str, str | None] = {}
    for engine, record in bundle.manifest.engines.items():
        if engine not in FLAVORS:
            continue
        try:
            reasons[engine] = why_not(FLAVORS[engine], record, found, FLAVORS[engine].version())
        except MissingExtra as error:
            reasons[engine] = str(error)
    return reasons


def machine() -> Machine:
    """This machine's facts, read from /proc where there is one."""
    return Machine(
        cpu=cpu_info().get("model name") or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
        memory=_memory(),
        instruction_sets=instruction_sets(),
        python=platform.python_version(),
        reelquant=metadata.version("reelquant"),
    )


def _report(engine: str, package: str, inspect: Callable[[ModuleType], EngineReport]) -> EngineReport:
    try:
        return inspect(import_module(package))
    except Exception as error:  # noqa: BLE001 - a broken package may raise anything, and one must not hide the others
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            return EngineReport(engine, False, None, "", f"{package} is not installed", _install(engine))
        reason = f"{package} is installed but fails: {_one_line(error)}"
        return EngineReport(engine, False, _installed(package), "", reason, _install(engine, again=True))


def _openvino(module: ModuleType) -> EngineReport:
    version, devices = str(module.get_version()).split("-")[0], module.Core().available_devices
    if "CPU" in devices:
        return EngineReport("openvino", True, version, ", ".join(devices), "", "")
    again = _install("openvino", again=True)
    return EngineReport("openvino", False, version, ", ".join(devices), "its CPU plugin is missing", again)


def _onnxruntime(module: ModuleType, found: Gpus) -> EngineReport:
    version, cuda = str(module.__version__), "CUDAExecutionProvider" in module.get_available_providers()
    devices = f"CUDA ({', '.join(found.names)}), CPU" if cuda and found.names else "CPU"
    reason = f"built for CUDA, but {found.reason}: it runs on the CPU" if cuda and not found.names else ""
    if found.names and not cuda:
        reason = "built for CPUs alone: it leaves the GPU unused"
        return EngineReport("onnxruntime", True, version, devices, reason, _install("onnxruntime-gpu"))
    return EngineReport("onnxruntime", True, version, devices, reason, "")


def _tensorrt(module: ModuleType, found: Gpus, engine: str) -> EngineReport:
    version, devices = str(module.__version__), ", ".join(found.names)
    if not found.names:
        # Only RTX compiles for a GPU that is not here.
        can = "can build engines here, cannot run them" if engine == "tensorrt-rtx" else "cannot build or run here"
        remedy = "run on openvino, or on a machine with an NVIDIA GPU and its driver"
        return EngineReport(engine, False, version, devices, f"{can}: {found.reason}", remedy)
    if refused := unsupported(FLAVORS[engine], found):
        return EngineReport(engine, False, version, devices, refused, "")
    try:
        import_module("cuda.bindings.runtime")
    except Exception as error:  # noqa: BLE001 - as above
        reason = f"cuda-bindings is missing or broken: {_one_line(error)}"
        return EngineReport(engine, False, version, devices, reason, _install(engine))
    return EngineReport(engine, True, version, devices, "", "")


def _install(engine: str, again: bool = False) -> str:
    return f"pip install {'--force-reinstall ' if again else ''}'reelquant[{engine}]'"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _memory() -> int:
    limits = [int(text) for text in read_lines("/sys/fs/cgroup/memory.max") if text.isdecimal()]
    if sys.platform != "win32":
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(limits, default=0)
