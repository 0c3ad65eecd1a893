"""The search finds the cheapest steps, and the fit what their forecasts are put together from."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from reelquant.quant.calibration.data import CalibrationData
from reelquant.quant.derive import derive_bundle
from reelquant.quant.schedule.budget import Budget
from reelquant.quant.schedule.make import SchedulePlan, cheapest, schedule_of
from reelquant.quant.schedule.measure import HeldOut
from reelquant.quant.schedule.search import candidates, cheapest_steps, rows, spread, stretch_costs
from reelquant.quant.schedule.trajectories import record
from reelquant.quant.schedule.trial import best_fit
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.errors import AccuracyError, BadInput
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.sampling.denoise import denoise
from reelquant.runtime.sampling.schedule import Forecaster, schedules_of
from tests.command_line import run
from tests.conftest import BundleMaker

STEPS = 10
QUICK = 6


@pytest.mark.parametrize("scheduler", ["dpm", pytest.param("ddim", marks=pytest.mark.slow)])
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
    costs = stretch_costs(trajectories[:3])
    trials = candidates(costs, STEPS)
    assert len(trials) > 3 and all(kinds[0] == "b" and rows(kinds) <= STEPS for kinds in trials)
    kinds, found = best_fit(pipeline, trajectories[:3], costs, STEPS, 2)
    assert kinds in trials
    fit = schedule_of(pipeline, "half", first, 2, kinds, found)
    assert [len(row) for row in fit.coefficients][:1] == [3] and len(fit.coefficients) == STEPS
    seen, held = Forecaster(2), []
    for i, kind in enumerate(kinds):
        latents = first.states[i]
        seen.see(latents if kind in "bc" else None, latents if kind in "bu" else None)
        held.append(tuple(seen.held(first.resolved.guidance)))
    unseen = trajectories[3]
    errors = []
    for schedule in (fit, replace(fit, coefficients=tuple(held))):
        blind = replace(schedule, checks=((),) * STEPS)  # nothing is mended
        made = denoise(pipeline.transformer(), replace(unseen.conditioning, run=unseen.run()), schedule=blind)
        errors.append(np.linalg.norm(made - unseen.final))
    assert errors[0] < errors[1]
    if scheduler == "ddim":
        with pytest.raises(AccuracyError, match=r"no schedule keeps psnr>=139: .*; give a wider budget"):
            held_out = HeldOut(pipeline, [unseen])
            cheapest(pipeline, "none", trajectories[:3], held_out, Budget.parse("psnr>=139"), SchedulePlan())
        # A guard that no clip passes: all are exact, for more forwards than every step computed.
        with pytest.raises(AccuracyError, match=r"no schedule keeps psnr>=20"):
            strict = SchedulePlan(guard=1e-9)
            cheapest(pipeline, "none", trajectories[:3], held_out, Budget.parse("psnr>=20"), strict)


def test_no_steps_are_cheaper() -> None:
    """The programme's steps are those that trying all of them finds."""
    steps, computed = 7, 4
    costs = np.random.default_rng(0).random((steps + 1, steps, steps + 1))

    def cost(chosen: tuple[int, ...]) -> float:
        ends = zip((-1, *chosen), chosen, (*chosen[1:], steps), strict=False)
        return float(sum(costs[p, q, end] for p, q, end in ends))

    best = min(((0, *rest) for rest in combinations(range(1, steps), computed - 1)), key=cost)
    assert cheapest_steps(costs, computed) == "".join("b" if i in best else "-" for i in range(steps))


def test_late_halves_are_candidates() -> None:
    steps = 20
    costs = np.array(
        [[[(r - q) ** 2 for r in range(steps + 1)] for q in range(steps)] for _ in range(steps + 1)], float
    )
    trials = candidates(costs, steps)
    late = [kinds for kinds in trials if set(kinds) & {"c", "u"}]
    assert len(late) == 2 and all(rows(kinds) <= steps and "b" not in kinds[14:] for kinds in late)


def test_steps_at_even_distances() -> None:
    assert spread(9, 3, 1, 1) == "b---b---b"
    assert spread(10, 6, 2, 2) == "bb-b--b-bb"
    assert spread(10, 3, 2, 2) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("psnr>=37", "psnr>=37"),
        (" forwards <= 0.40", "forwards<=0.4"),
        ("rel_l2<=2e-2,fidelity>=-0.01", "rel_l2<=0.02, fidelity>=-0.01"),
    ],
)
def test_a_budget_is_read(text: str, said: str) -> None:
    assert str(Budget.parse(text)) == said


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("psnr<=37", "is none of psnr>=37"),
        ("forwards<=1.5", "forwards are a share, at most 1"),
        ("forwards<=0", "is above 0"),
        ("fidelity>=0.5", "from -1 to 0"),
        ("psnr>=37, psnr>=40", "two limits of one kind"),
        ("psnr>=37;rel_l2<=1", "joined by a comma"),
        ("speed>=2", "is none of"),
        ("psnr>=", "is none of"),
        ("", "is none of"),
    ],
)
def test_another_budget_is_refused(text: str, why: str) -> None:
    with pytest.raises(BadInput, match=re.escape(why)):
        Budget.parse(text)


def test_the_command_line(demo_bundle: BundleMaker, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, out = demo_bundle("t2v", "fp32"), tmp_path / "out"
    ask = ("schedule", source.path, out, "--data", "demo", "--prompts", "3", "--held-out", "2", "--steps", str(QUICK))
    budget = ("--budget", "forwards<=0.5, fidelity>=-0.5", "--scorer", "demo.reader:shown", "--name", "half")
    said = json.loads(run(capfd, *ask, *budget, "--json").out)
    assert said["forwards"] <= 0.5 and -0.5 <= said["fidelity_change"] <= 0.5 and said["floor_psnr"] > 60
    assert rows(said["kinds"]) <= QUICK and said["clips"] == 2 and said["psnr_least"] <= said["psnr"]
    made = Bundle.open(out)
    made.verify()
    assert made.digest == source.digest and made.manifest.engines == source.manifest.engines
    assert "schedule half: " in run(capfd, "inspect", out).out
    clip = ("generate", out, "a red circle moves right", "-o", tmp_path / "clip.mp4", "--seed", "1", "--json")
    shown = json.loads(run(capfd, *clip, "--steps", str(QUICK), "--schedule", "half").out)
    assert shown["forwards"] >= 2 and shown["schedule"]["name"] == "half" and shown["schedule_note"] is None
    again = run(capfd, "generate", out, "--like", tmp_path / "clip.mp4", "-o", tmp_path / "again.mp4", "--json")
    assert json.loads(again.out)["sha256_frames"] == shown["sha256_frames"]
    other = run(capfd, *clip, "--steps", "4", "--schedule", "half")
    assert "schedule half does not hold for this clip: it was made for 6 steps, and the clip has 4" in other.err
    assert json.loads(other.out)["forwards"] == 8
    none = run(capfd, *clip, "--schedule", "fast")
    assert none.code == 2 and "has no schedule 'fast'; one of exact, half, a file" in none.err
    unsaid = run(capfd, *ask, "--budget", "fidelity>=-0.1", "--replace")
    assert unsaid.code == 2 and "say with --scorer MODULE:FUNCTION how clips are scored" in unsaid.err
    exact = run(capfd, *ask, "--budget", "psnr>=30", "--name", "exact", "--replace")
    assert exact.code == 2 and "'exact' cannot name a schedule" in exact.err
    with derive_bundle(made, tmp_path / "changed", ["transformer"]) as derived:
        derived.keep("transformer")
    assert schedules_of(made) == ["half"] and schedules_of(Bundle.open(tmp_path / "changed")) == []
