"""On a real GPU: the demo's engines render the CPU's clip. Run with ``make test-gpu``."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.options import BuildSpec, EngineOptions
from reelquant.runtime.engines.tensorrt.flavor import RTX, STANDARD, Flavor
from reelquant.runtime.engines.tensorrt.stage import build_engines
from reelquant.runtime.engines.tensorrt.targets import unsupported
from reelquant.runtime.errors import MissingExtra
from reelquant.runtime.machine.gpus import gpus
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.relative_l2 import relative_l2
from reelquant.runtime.request import Request
from tests.conftest import CHECKPOINTS, BundleMaker

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not gpus().names, reason="there is no NVIDIA GPU here")]
TOLERANCE = {"fp16": 0.02, "fp8": 0.1}  # relative L2 of the latents after four guided steps


@pytest.mark.parametrize("flavor", [RTX, STANDARD], ids=lambda flavor: flavor.engine)
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_a_clip_is_the_cpus(task: str, precision: str, flavor: Flavor, rtx_bundle: BundleMaker, tmp_path: Path) -> None:
    try:
        flavor.version()
    except MissingExtra as error:
        pytest.skip(str(error))
    if refused := unsupported(flavor, gpus()):
        pytest.skip(refused)
    shutil.copytree(rtx_bundle(task, precision).path, tmp_path / "bundle")
    target = gpus().targets[0] if flavor == RTX else "current"
    wanted = BuildSpec(gpus=(target,), cache=tmp_path / "cache")
    bundle = build_engines(Bundle.open(tmp_path / "bundle"), flavor, wanted)
    records = bundle.manifest.engines[flavor.engine]["engines"]
    assert all(sum(each["evidence"]["layers"].values()) > 0 for each in records)
    image = CHECKPOINTS.parent / "first_frame.png" if task == "i2v" else None
    request = Request("a red circle moves right on a white background", image, seed=3, steps=4)
    found, wanted_latents = (_latents(bundle, engine, request) for engine in (flavor.engine, "openvino"))
    assert relative_l2(found, wanted_latents) < TOLERANCE[precision]
    pipeline = Pipeline(bundle, EngineOptions(flavor.engine))
    frames = [pipeline.decode(wanted_latents), Pipeline(bundle, EngineOptions("openvino")).decode(wanted_latents)]
    assert relative_l2(frames[0].astype(np.float32), frames[1].astype(np.float32)) < 0.02


def _latents(bundle: Bundle, engine: str, request: Request) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    pipeline = Pipeline(bundle, EngineOptions(engine))
    return pipeline.sample(request)
