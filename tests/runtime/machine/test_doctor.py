from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from reelquant.runtime.engines import onnxruntime as onnxruntime_engine
from reelquant.runtime.engines.engine import EngineReport
from reelquant.runtime.engines.onnxruntime_cuda import engine as cuda_engine
from reelquant.runtime.engines.onnxruntime_cuda import starts
from reelquant.runtime.engines.registry import get_engine
from reelquant.runtime.engines.tensorrt import engine as tensorrt_engine
from reelquant.runtime.machine import cpu_units, doctor
from reelquant.runtime.machine.doctor import diagnose, machine
from reelquant.runtime.machine.gpus import Gpus, gpus

NONE, ONE = Gpus((), "no NVIDIA driver (libcuda.so.1 is not there)"), Gpus(("NVIDIA L4",), "", ((8, 9),))


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Callable[..., EngineReport]:
    """Diagnose one engine on a machine with the given GPUs and modules (None: not installed)."""

    def of(engine: str, found: Gpus = NONE, **modules: Any) -> EngineReport:
        for module in (onnxruntime_engine, cuda_engine, starts, tensorrt_engine):
            monkeypatch.setattr(module, "gpus", lambda: found)
        for name, package in modules.items():
            monkeypatch.setitem(sys.modules, name.replace("__", "."), package)
        return next(r for r in diagnose() if r.engine == engine)

    return of


def package(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, code: str) -> None:
    """Put a package on the path in front of the real one."""
    (folder / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)


def test_every_engine_is_reported_once_and_says_what_to_do() -> None:
    reports = diagnose()
    assert [r.engine for r in reports] == ["openvino", "onnxruntime", "onnxruntime-cuda", "tensorrt-rtx", "tensorrt"]
    for r in reports:
        assert (r.version and r.devices) if r.usable else (r.reason and r.remedy)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_installed_cpu_engines_are_usable(engine: str) -> None:
    module = pytest.importorskip(engine)
    found = next(r for r in diagnose() if r.engine == engine)
    assert found.usable and "CPU" in found.devices and module.__version__.startswith(found.version)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "onnxruntime-cuda", "tensorrt-rtx", "tensorrt"])
def test_missing_package_names_its_extra(report: Callable[..., EngineReport], engine: str) -> None:
    name = get_engine(engine).package
    assert report(engine, **{name: None}) == EngineReport(
        engine, False, None, "", f"{name} is not installed", f"pip install 'reelquant[{engine}]'"
    )


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "onnxruntime-cuda", "tensorrt-rtx", "tensorrt"])
@pytest.mark.parametrize(("code", "reason"), [
    ("raise OSError('libtbb.so.12: cannot open\\n  shared object file')", "libtbb.so.12: cannot open shared object file"),
    ("raise ImportError('DLL load failed')", "DLL load failed"),
    ("import numpy_that_is_not_there", "No module named 'numpy_that_is_not_there'"),
    ("raise RuntimeError", "RuntimeError"),
    ("", "has no attribute"),
])  # fmt: skip
def test_broken_package_is_a_reason_not_a_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: str, code: str, reason: str
) -> None:
    name = get_engine(engine).package
    package(monkeypatch, tmp_path, name, code)
    found = next(r for r in diagnose() if r.engine == engine)
    sys.modules.pop(name, None)  # monkeypatch would put the broken one back
    assert not found.usable and found.reason.startswith(f"{name} is installed but fails: ") and reason in found.reason
    assert "\n" not in found.reason and found.remedy == f"pip install --force-reinstall 'reelquant[{engine}]'"


def test_rtx_without_a_gpu_can_still_build(report: Callable[..., EngineReport]) -> None:
    found = report("tensorrt-rtx", NONE, tensorrt_rtx=SimpleNamespace(__version__="1.7"))
    assert (found.usable, found.version, found.devices) == (False, "1.7", "")
    assert found.reason == f"can build engines here, cannot run them: {NONE.reason}" and "NVIDIA GPU" in found.remedy


def test_tensorrt_without_a_gpu_can_do_nothing(report: Callable[..., EngineReport]) -> None:
    found = report("tensorrt", NONE, tensorrt=SimpleNamespace(__version__="10.13"))
    assert not found.usable and found.reason == f"cannot build or run here: {NONE.reason}"


@pytest.mark.parametrize("engine", ["tensorrt-rtx", "tensorrt"])
def test_tensorrt_with_a_gpu_needs_cuda_bindings(report: Callable[..., EngineReport], engine: str) -> None:
    package, module = (
        engine.replace("-", "_"),
        SimpleNamespace(__version__="9.9", ComputeCapability=SimpleNamespace(__members__={"SM89": 0})),
    )
    without = report(engine, ONE, **{package: module, "cuda__bindings__runtime": None})
    assert not without.usable and without.reason.startswith("cuda-bindings") and f"[{engine}]" in without.remedy
    bindings = {name: ModuleType(name) for name in ("cuda", "cuda__bindings", "cuda__bindings__runtime")}
    assert report(engine, ONE, **{package: module}, **bindings) == EngineReport(
        engine, True, "9.9", "NVIDIA L4", "", ""
    )


def test_tensorrt_rtx_on_a_gpu_that_it_does_not_support(report: Callable[..., EngineReport]) -> None:
    hopper = Gpus(("NVIDIA H100",), "", ((9, 0),))
    found = report("tensorrt-rtx", hopper)
    assert not found.usable and "does not support NVIDIA H100 (sm90), only sm75" in found.reason


@pytest.mark.parametrize(("found", "cuda", "remedy"), [
    (NONE, False, ""),
    (NONE, True, ""),
    (ONE, False, "on the GPU: pip install 'reelquant[onnxruntime-cuda]'"),
    (ONE, True, "run with --engine onnxruntime-cuda"),
])  # fmt: skip
def test_onnxruntime_is_for_the_cpu_and_says_where_a_gpu_is_left(
    report: Callable[..., EngineReport], found: Gpus, cuda: bool, remedy: str
) -> None:
    providers = ["CUDAExecutionProvider"] * cuda + ["AzureExecutionProvider", "CPUExecutionProvider"]
    module = SimpleNamespace(__version__="1.31", get_available_providers=lambda: providers)
    reason = "it computes on the CPU alone and leaves the GPU unused" if remedy else ""
    assert report("onnxruntime", found, onnxruntime=module) == EngineReport(
        "onnxruntime", True, "1.31", "CPU", reason, remedy
    )


def test_onnxruntime_cuda_says_what_it_lacks(report: Callable[..., EngineReport]) -> None:
    """Of the package for CPUs alone; the build with CUDA is tried in tests/runtime/engines/onnxruntime_cuda/test_wheel.py."""
    found = report("onnxruntime-cuda", ONE)
    assert not found.usable and found.reason == "this build of onnxruntime is for CPUs alone"
    assert found.remedy == "pip uninstall onnxruntime && pip install --force-reinstall 'reelquant[onnxruntime-cuda]'"


def test_openvino_without_its_cpu_plugin(report: Callable[..., EngineReport]) -> None:
    core = SimpleNamespace(available_devices=["GPU"])
    found = report("openvino", openvino=SimpleNamespace(get_version=lambda: "2026.4-1-x", Core=lambda: core))
    assert (found.usable, found.version, found.reason) == (False, "2026.4", "its CPU plugin is missing")


class Driver:
    """libcuda as ctypes shows it, with these GPUs."""

    def __init__(self, names: list[bytes], status: int = 0) -> None:
        self.names, self.status = names, status

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(self.names)
        return 0

    def cuDeviceGet(self, device: Any, i: int) -> int:
        device._obj.value = i
        return 0

    def cuDeviceGetName(self, text: Any, size: int, device: Any) -> int:
        text.value = self.names[device.value]
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = {75: 8, 76: 9}[attribute] + device.value
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 13010
        return 0


@pytest.mark.parametrize(("driver", "expected"), [
    (Driver([b"NVIDIA H200", b"NVIDIA L4"]), Gpus(("NVIDIA H200", "NVIDIA L4"), "", ((8, 9), (9, 10)), 13010)),
    (Driver([]), Gpus((), "the NVIDIA driver sees no GPU")),
    (Driver([], status=100), Gpus((), "the NVIDIA driver sees no GPU")),
    (Driver([b"x"], status=803), Gpus((), "the NVIDIA driver fails to start (CUDA error 803)")),
])  # fmt: skip
def test_gpus_are_what_the_driver_says(monkeypatch: pytest.MonkeyPatch, driver: Driver, expected: Gpus) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert gpus() == expected


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert gpus() == Gpus((), "no NVIDIA driver (libcuda.so.1 is not there)")


@pytest.mark.gpu
@pytest.mark.skipif(not gpus().names, reason="there is no NVIDIA GPU here")
def test_a_real_gpu_is_seen() -> None:
    assert gpus().names and gpus().reason == ""


def test_machine_reads_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/proc/cpuinfo": ["model name\t: Intel(R) Xeon(R) 8488C", "flags\t\t: sse amx_int8 avx512_vnni avx2 amxish"],
             "/sys/fs/cgroup/memory.max": ["1048576"]}  # fmt: skip
    for module in (doctor, cpu_units):
        monkeypatch.setattr(module, "read_lines", lambda path: files.get(path, []))
    found = machine()
    assert found.cpu == "Intel(R) Xeon(R) 8488C" and found.instruction_sets == ("avx2", "avx512_vnni", "amx_int8")
    assert found.memory == 1048576


def test_machine_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (doctor, cpu_units):
        monkeypatch.setattr(module, "read_lines", lambda path: [])
    found = machine()
    assert found.cpu and found.instruction_sets == () and found.memory > 2**28


def test_this_machine() -> None:
    found = machine()
    assert (
        found.cores == cpu_units.usable_cores() <= len(os.sched_getaffinity(0))
        and found.python == sys.version.split()[0]
    )
    assert found.reelquant[0].isdigit() and found.memory > 2**28 and found.cpu
