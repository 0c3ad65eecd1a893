"""What an extension costs: a family and a step reuse, each a file that changes no other (docs/guide/extend.md has the table)."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reelquant.runtime import models
from reelquant.runtime.bundle import Bundle, write_manifest
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.registry import open_onnx
from reelquant.runtime.errors import BundleError
from reelquant.runtime.media.video import Clip
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.request import Request
from tests.conftest import CPU_ENGINES, BundleMaker, TinyBundleMaker
from tests.toys.step_reuse import EverySecondStep
from tests.toys.toy_family import Toy

REQUEST = Request("a red circle moves right on a white background", seed=3, steps=10)


@pytest.mark.parametrize("engine", CPU_ENGINES)
def test_whole_steps_are_reused(engine: str, demo_bundle: BundleMaker) -> None:
    bundle = demo_bundle("t2v", "fp32")
    whole = Pipeline(bundle, EngineOptions(engine))
    session = EverySecondStep(open_onnx(engine, bundle.graph("transformer", "main")))
    fewer = whole.with_transformer(session)
    wanted, found = (pipeline.generate(REQUEST) for pipeline in (whole, fewer))
    assert session.forwards == 5
    assert 20 < psnr(found, wanted) < 60  # another clip, and of the same scene
    assert fewer.generate(REQUEST).frames.tobytes() == found.frames.tobytes() and session.forwards == 10


def test_a_second_family(tiny_bundle: TinyBundleMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_bundle("t2v")
    shutil.copytree(source.path, tmp_path / "toy")
    vae = {**source.manifest.vae, "latents_std": 1 / source.manifest.vae["scaling_factor"]}
    del vae["scaling_factor"]
    with pytest.raises(BundleError, match="of the family 'toy', and this version knows cogvideox; use the version"):
        write_manifest(tmp_path / "toy", replace(source.manifest, family="toy", vae=vae))
        Bundle.open(tmp_path / "toy")
    monkeypatch.setitem(models.FAMILIES, "toy", Toy)
    request = Request("a circle", seed=1, steps=2, frames=9, height=32, width=32)
    made, wanted = (
        Pipeline(bundle, EngineOptions("onnxruntime")).generate(request)
        for bundle in (Bundle.open(tmp_path / "toy"), source)
    )
    np.testing.assert_array_equal(made.frames, wanted.frames)
    write_manifest(tmp_path / "toy", replace(source.manifest, family="toy"))
    with pytest.raises(BundleError, match="has no latents_std; export the bundle again"):
        Bundle.open(tmp_path / "toy")


def psnr(found: Clip, wanted: Clip) -> float:
    difference = found.frames.astype(np.float64) - wanted.frames
    return float(10 * np.log10(255**2 / np.mean(difference**2)))
