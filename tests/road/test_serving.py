"""The benchmark that a GPU will run, run here: diffusers and the demo's bundle on a CPU, from the same noise."""

from __future__ import annotations

import pytest
import torch

from benchmarks import serving
from benchmarks.same_noise import Sampling
from tests.conftest import CHECKPOINTS, BundleMaker


@pytest.mark.parametrize("task", ["t2v", pytest.param("i2v", marks=pytest.mark.slow)])
def test_both_make_the_same_clip(task: str, demo_bundle: BundleMaker) -> None:
    bundle = demo_bundle(task, "fp32")
    defaults = bundle.manifest.defaults
    size = defaults.size
    sampling = Sampling.random(task, serving.PROMPT, size, 2, bundle.manifest.geometry)
    runners: serving.Runners = {
        "diffusers": lambda: serving.Diffusers(CHECKPOINTS / task, sampling, "cpu", torch.float32, False),
        "ours": lambda: serving.Ours(bundle, "openvino", sampling),
    }
    reference, ours = serving.rows(serving.measure(runners, 1, apart=True), 2)
    assert set(reference["difference"].values()) == {0.0} and reference["ratio"] == 1
    # Text and latents are diffusers'; frames too, but for the 255 steps of a picture.
    assert max(ours["difference"]["text"], ours["difference"]["latents"]) < 1e-4
    assert 0 < ours["difference"]["frames"] < 0.01
    assert all(row["stages"][stage] > 0 for row in (reference, ours) for stage in ("text", "denoise", "decode"))
    assert ours["seconds_per_clip"] == pytest.approx(sum(ours["stages"].values()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cuda"], "finds no CUDA device here; use --device cpu, or run it on a GPU"),
        (
            ["--engine", "tensorrt-rtx", "--precision", "fp16"],
            "--gpu current is the GPU of this machine, and there is no",
        ),
        (["--size", "9x33x32"], "height 33 is not a positive multiple of 16"),
    ],
)
def test_what_is_missing_is_said_before_the_work(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        serving.main([str(CHECKPOINTS / "t2v"), *options])
    assert ended.value.code == 2 and message in capsys.readouterr().err
