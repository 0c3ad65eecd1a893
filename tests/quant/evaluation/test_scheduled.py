"""A quantized bundle and its schedule are judged together, on whole clips."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from reelquant.quant.evaluation.scheduled import ScheduledClip, schedule_faults
from reelquant.runtime.bundle import SCHEDULES
from reelquant.runtime.sampling.schedule import Schedule
from tests.command_line import run
from tests.conftest import BundleMaker

STEPS = 6


def test_the_gate_with_a_schedule(demo_bundle: BundleMaker, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reference, out = demo_bundle("t2v", "fp32").path, tmp_path / "out"
    clips = ("--data", "demo", "--prompts", "3", "--held-out", "1", "--steps", str(STEPS), "--budget", "forwards<=0.6")
    made = run(capfd, "schedule", demo_bundle("t2v", "int8").path, out, *clips, "--name", "fast", "--json")
    assert made.code == 0, made.err
    quick = ("--data", "demo", "--prompts", "1", "--steps", "2", "--engine", "openvino")
    good = run(capfd, "gate", out, reference, *quick, "--schedule", "fast", "--json")
    assert good.code == 0, good.err
    said = json.loads(good.out)
    assert said["faults"] == []
    (clip,) = said["scheduled"]
    assert 0 < clip["quantized"] < 1 and 0 < clip["scheduled"] < 1 and clip["psnr"] > 20
    schedule = Schedule.parse((out / SCHEDULES / "fast.json").read_text(), "here")
    broken = replace(
        schedule,
        coefficients=tuple((0.0,) * len(row) for row in schedule.coefficients),  # which forecasts nothing
        bounds=tuple(1e9 if bound else 0.0 for bound in schedule.bounds),
    )
    (tmp_path / "broken.json").write_text(broken.to_json())
    bad = run(capfd, "gate", out, reference, *quick, "--schedule", tmp_path / "broken.json")
    assert bad.code == 1 and "schedule fast: a clip comes to" in bad.out and "are promised" in bad.out
    (tmp_path / "other.json").write_text(replace(schedule, transformer="ab" * 32).to_json())
    other = run(capfd, "gate", out, reference, *quick, "--schedule", tmp_path / "other.json")
    assert other.code == 2 and "it was made for another transformer" in other.err


def test_two_errors_that_are_worse_together_are_a_fault(tmp_path: Path) -> None:
    schedule = Schedule(
        "fast", "b-", 1, ((), ()), ((), ()), (0.0, 0.0), "", {}, "9x32x32", (6.0, 6.0), {"psnr_p5": 30.0}
    )
    assert schedule_faults(schedule, [ScheduledClip(28.0, 0.03, 0.04, 0.06)]) == ()
    (fault,) = schedule_faults(schedule, [ScheduledClip(31.0, 0.03, 0.04, 0.08)])
    assert "differs by 0.080 from the reference's, and by 0.030 and 0.040 with each alone" in str(fault)
    (fault,) = schedule_faults(schedule, [ScheduledClip(26.9, 0.03, 0.04, 0.05)])
    assert "26.9 dB of the same clip with every step computed; 30.0 dB at the 5th percentile are promised" in str(fault)
