"""What the tests share: the demo checkpoints, and real bundles exported from them once per session."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from reelquant.runtime.bundle import Bundle

ROOT = Path(__file__).parents[1]
CHECKPOINTS = ROOT / "demo" / "checkpoints"
BUILD = ROOT / "build" / "tests"
# Engines that tests build are kept here, and the user's own cache is left alone; commands that tests start inherit it.
os.environ["REELQUANT_CACHE"] = str(BUILD / "cache")

BundleMaker = Callable[[str, str], Bundle]
TinyBundleMaker = Callable[[str], Bundle]


@pytest.fixture(scope="session")
def demo_bundle() -> BundleMaker:
    """``demo_bundle("t2v", "int8")``: the demo checkpoint through the real road; read-only, shared by all tests.

    The traced stage is kept in build/tests and used again while checkpoint, packages and exporter are the same.
    """
    from reelquant.export.road import ExportPlan, export_checkpoint

    made: dict[tuple[str, str], Bundle] = {}

    def make(task: str, precision: str) -> Bundle:
        if (task, precision) not in made:
            plan = ExportPlan(precision, data="demo")
            out, work = BUILD / f"{task}-{precision}", BUILD / f"work-{task}"
            made[task, precision] = export_checkpoint(str(CHECKPOINTS / task), out, plan, work, replace=True)
        return made[task, precision]

    return make


@pytest.fixture(scope="session")
def rtx_bundle() -> BundleMaker:
    """As ``demo_bundle``, with TensorRT-RTX engines for Ada and Blackwell, which build without a GPU."""
    from reelquant.export.road import ExportPlan, export_checkpoint
    from reelquant.runtime.engines.tensorrt.builder import BuildOptions
    from reelquant.runtime.engines.tensorrt.stage import Wanted

    made: dict[tuple[str, str], Bundle] = {}

    def make(task: str, precision: str) -> Bundle:
        if (task, precision) not in made:
            gpus = ("sm120",) if precision == "nvfp4" else ("sm89", "sm120")
            wanted = Wanted(options=BuildOptions(gpus))
            plan = ExportPlan(precision, "tensorrt-rtx", data="demo", wanted=wanted)
            out, work = BUILD / f"rtx-{task}-{precision}", BUILD / f"work-{task}"
            made[task, precision] = export_checkpoint(str(CHECKPOINTS / task), out, plan, work, replace=True)
        return made[task, precision]

    return make


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> TinyBundleMaker:
    """``tiny_bundle("i2v")``: kilobytes, but every command runs on it; read-only, shared by all tests."""
    from tests.tiny_bundle import make_tiny_bundle

    folder = tmp_path_factory.mktemp("tiny")
    return cache(lambda task: make_tiny_bundle(folder / task, task))
