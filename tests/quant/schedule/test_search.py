"""The search finds the cheapest steps, and the fit what their forecasts are put together from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reelquant.quant.calibration.data import CalibrationData
from reelquant.quant.schedule.fit import fit
from reelquant.quant.schedule.make import Limit
from reelquant.quant.schedule.search import Costs, best_kinds, pruned, rows
from reelquant.quant.schedule.trajectories import record
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.errors import BadInput
from reelquant.runtime.pipeline import Pipeline
from tests.command_line import run
from tests.conftest import BundleMaker

STEPS = 10


@pytest.mark.parametrize("scheduler", ["ddim", "dpm"])
def test_recorded_searched_and_fitted(scheduler: str, demo_bundle: BundleMaker, tmp_path: Path) -> None:
    """On clips that were not fitted, half of the steps with fitted forecasts come nearer than the same steps without."""
    pipeline = Pipeline(demo_bundle("t2v", "fp32"), EngineOptions("openvino"))
    requests = [
        replace(request, scheduler=scheduler) for request in CalibrationData.load("demo").requests("t2v", 4, 0, STEPS)
    ]
    trajectories = record(pipeline, requests, tmp_path)
    first = trajectories[0]
    assert first.states.shape == (STEPS + 1, *first.conditioning.latents.shape)
    np.testing.assert_array_equal(pipeline.sample(first.resolved), first.final)
    costs = Costs(trajectories[:3], 2)
    every = pruned(costs)
    assert {2, 2 * STEPS} <= every.keys() and all(rows(kinds) == count for count, kinds in every.items())
    kinds = best_kinds(costs, STEPS, every)
    assert kinds[0] == "b" and rows(kinds) <= STEPS
    # No schedule of as many rows that differs in two steps costs less, and of any two whole halves neither.
    assert costs.of("b" * STEPS) < costs.of(kinds) <= min(costs.of("b-" * (STEPS // 2)), costs.of("b" + "u" * 8 + "-"))
    found = fit(pipeline, trajectories[:3], kinds, 2)
    assert [len(row) for row in found.coefficients][:1] == [3] and len(found.coefficients) == STEPS
    errors = [
        np.linalg.norm(made - each.final) / np.linalg.norm(each.final)
        for made, each in zip(found.latents, trajectories, strict=False)
    ]
    assert max(errors) < 0.2


@pytest.mark.parametrize(
    ("text", "said"),
    [("psnr>=37", "psnr>=37"), (" forwards <= 0.40", "forwards<=0.4"), ("rel_l2<=2e-2", "rel_l2<=0.02")],
)
def test_a_budget_is_read(text: str, said: str) -> None:
    assert str(Limit.parse(text)) == said


@pytest.mark.parametrize("text", ["psnr<=37", "forwards<=1.5", "forwards<=0", "speed>=2", "psnr>=", ""])
def test_another_budget_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"is none of: psnr>=37, rel_l2<=0.02, forwards<=0.4|at most 1"):
        Limit.parse(text)


def test_the_command_line(demo_bundle: BundleMaker, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, out = demo_bundle("t2v", "fp32"), tmp_path / "out"
    ask = ("schedule", source.path, out, "--data", "demo", "--prompts", "3", "--held-out", "2", "--steps", str(STEPS))
    said = json.loads(run(capfd, *ask, "--budget", "forwards<=0.5", "--name", "half", "--json").out)
    assert rows(said["kinds"]) <= STEPS and said["clips"] == 2 and said["psnr_least"] <= said["psnr"]
    made = Bundle.open(out)
    made.verify()
    assert made.digest == source.digest
    clip = ("generate", out, "a red circle moves right", "-o", tmp_path / "clip.mp4", "--seed", "1", "--json")
    shown = json.loads(run(capfd, *clip, "--steps", str(STEPS), "--schedule", "half").out)
    assert shown["forwards"] >= 2 and shown["schedule"]["name"] == "half" and shown["schedule_note"] is None
    again = run(capfd, "generate", out, "--like", tmp_path / "clip.mp4", "-o", tmp_path / "again.mp4", "--json")
    assert json.loads(again.out)["sha256_frames"] == shown["sha256_frames"]
    other = run(capfd, *clip, "--steps", "4", "--schedule", "half")
    assert "schedule half does not hold for this clip: it was made for 10 steps, and the clip has 4" in other.err
    assert json.loads(other.out)["forwards"] == 8
    none = run(capfd, *clip, "--schedule", "fast")
    assert none.code == 2 and "has no schedule 'fast'; one of exact, half, a file" in none.err
    few = run(capfd, *ask, "--budget", "psnr>=99", "--replace")
    assert few.code == 2 and "keeps psnr>=99; give a wider budget" in few.err
