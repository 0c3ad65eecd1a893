"""What the tests share: the demo checkpoints, and real bundles exported from them once per run."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from reelquant.runtime.bundle import Bundle

ROOT = Path(__file__).parents[1]
CHECKPOINTS = ROOT / "demo" / "checkpoints"
BUILD = ROOT / "build" / "tests"
CPU_ENGINES = ("openvino", "onnxruntime")  # which run any ONNX file on any machine
EVERY_CORE = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
# Engines that tests build are kept here, and the user's own cache is left alone; commands that tests start inherit it.
os.environ["REELQUANT_CACHE"] = str(BUILD / "cache")

# What takes longest, so that no process is left alone with one of these when the other has nothing more to do.
LONGEST = (
    "road/test_variants.py",
    "quant/evaluation/test_gate.py",
    "runtime/engines/tensorrt/test_build.py",
    "export/test_plan.py",
    "runtime/engines/tensorrt/test_full_size.py",
    "quant/test_quantize_command.py",
    "quant/test_decoder_bundle.py",
    "road/test_end_to_end.py",
    "road/test_serving.py",
    "road/test_quantized.py",
    "road/test_text_weights.py",
)

BundleMaker = Callable[[str, str], Bundle]
TinyBundleMaker = Callable[[str], Bundle]


def pytest_configure(config: pytest.Config) -> None:
    """Give each of several test processes its share of the cores.

    Engines, torch and BLAS start as many threads as they see cores. Two processes that each see both wait for each other's
    threads, which spin: the same work then costs half as much again (docs/decisions/0012-tests-in-time.md). For a claim of
    work that is split among threads, a test starts a process that takes all of ``EVERY_CORE``.
    """
    cores, worker = sorted(EVERY_CORE), getattr(config, "workerinput", None)
    if worker is None and (processes := config.getoption("numprocesses", None)):
        # NumPy is loaded before a worker knows its cores. Threads of OpenBLAS that share one core spin for each other, and
        # a product then takes ten times as long.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", str(max(1, len(cores) // processes)))
    if worker is not None and hasattr(os, "sched_setaffinity"):
        first, count = int(worker["workerid"].removeprefix("gw")), worker["workercount"]
        os.sched_setaffinity(0, cores[first % len(cores) :: count])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, in whatever order the others are."""
    tests = ROOT / "tests"
    places = {str(tests / name): place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(str(item.path), len(places)))


@pytest.fixture(scope="session")
def demo_bundle() -> BundleMaker:
    """``demo_bundle("t2v", "int8")``: the demo checkpoint through the real road; read-only, shared by all tests.

    The traced stage is kept in build/tests and used again while checkpoint, packages and exporter are the same.
    """
    return cache(lambda task, precision: _exported(task, precision, f"{task}-{precision}"))


@pytest.fixture(scope="session")
def rtx_bundle() -> BundleMaker:
    """As ``demo_bundle``, with TensorRT-RTX engines for Ada and Blackwell, which build without a GPU."""
    from reelquant.runtime.engines.options import BuildSpec

    def make(task: str, precision: str) -> Bundle:
        gpus = ("sm120",) if precision in ("mxfp8", "nvfp4") else ("sm89", "sm120")
        spec = BuildSpec(gpus=gpus)
        return _exported(task, precision, f"rtx-{task}-{precision}", engine="tensorrt-rtx", spec=spec)

    return cache(make)


def _exported(task: str, precision: str, name: str, **plan: Any) -> Bundle:
    """``build/tests/NAME``, made once for all processes of a run; the others wait for it."""
    from reelquant.export.road import ExportPlan, export_checkpoint

    run, stamp = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid())), BUILD / f"{name}.run"
    BUILD.mkdir(parents=True, exist_ok=True)
    with FileLock(BUILD / f"{task}.lock"):  # of all precisions, which share the stages before them
        if stamp.exists() and stamp.read_text("ascii") == run:
            return Bundle.open(BUILD / name)
        stamp.unlink(missing_ok=True)
        checkpoint, work = str(CHECKPOINTS / task), BUILD / f"work-{task}"
        bundle = export_checkpoint(
            checkpoint, BUILD / name, ExportPlan(precision, data="demo", **plan), work, replace=True
        )
        stamp.write_text(run, "ascii")
    return bundle


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> TinyBundleMaker:
    """``tiny_bundle("i2v")``: kilobytes, but every command runs on it; read-only, shared by all tests."""
    from tests.tiny_bundle import make_tiny_bundle

    folder = tmp_path_factory.mktemp("tiny")
    return cache(lambda task: make_tiny_bundle(folder / task, task))
