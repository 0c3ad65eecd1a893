"""Fidelity per second: every way to make the demo's clips with fewer forwards, side by side in one run.

    python -m benchmarks.few_steps --json

Every prompt's clip is made in every way, from the same noise, before the next prompt's, in an order that is turned each time: seconds are
then of the same minutes, also where other work runs beside. ``clip`` and ``denoise`` are seconds of those of every step computed, median
and 10th to 90th percentile over prompts of the ratio for the same prompt. PSNR is to the clip with every step computed. Schedules are
made here, from prompts that are none of those, where the bundle has none of that name. The few-step bundle is the demo with its LoRA (``docs/guide/few-steps.md``).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.schedule import GUIDANCE, SHARES
from demo.fidelity import Task, measure, psnr, tasks
from reelquant.quant.calibration.data import CalibrationData
from reelquant.quant.schedule.budget import Budget
from reelquant.quant.schedule.make import SchedulePlan, cheapest
from reelquant.quant.schedule.measure import HeldOut
from reelquant.quant.schedule.trajectories import record
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.media.video import Clip
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.request import Request
from reelquant.runtime.sampling.schedule import Schedule, load_schedule, schedules_of

EXACT = "every step"
Way = Callable[[Task], Clip]


def schedules(pipeline: Pipeline, shares: list[str], plan: SchedulePlan) -> dict[str, Schedule]:
    """One for each share of the forwards: the bundle's own of that name, or made as ``reelquant schedule`` makes them."""
    own = schedules_of(pipeline.bundle)
    found = {name: load_schedule(name, pipeline.bundle) for name in shares if name in own}
    if len(found) == len(shares):
        return found
    data, task = CalibrationData.load(plan.data), pipeline.bundle.manifest.task
    asked = [
        *data.requests(task, plan.prompts, plan.seed),
        *data.last(plan.held_out, task).requests(task, plan.held_out, plan.seed + plan.prompts),
    ]
    with tempfile.TemporaryDirectory() as folder:
        clips = record(pipeline, [replace(each, guidance=plan.guidance) for each in asked], Path(folder))
        seen, unseen = clips[: plan.prompts], HeldOut(pipeline, clips[plan.prompts :])
        return found | {
            name: cheapest(pipeline, name, seen, unseen, Budget.parse(f"forwards<={SHARES[name]:.4f}"), plan)
            for name in shares
            if name not in found
        }


def ways(base: Pipeline, few: Pipeline, made: dict[str, Schedule], steps: list[int]) -> dict[str, Way]:
    """What makes a task's clip, by name."""

    def by(pipeline: Pipeline, **choices: Any) -> Way:
        return lambda task: pipeline.generate(
            Request(task.scene.caption, seed=task.seed, latents=task.noise, **choices)
        )

    found = {EXACT: by(base, guidance=GUIDANCE)}
    found |= {f"schedule, a {name}": by(base, guidance=GUIDANCE, schedule=each) for name, each in made.items()}
    found |= {f"{count} steps": by(base, guidance=GUIDANCE, steps=count) for count in steps}
    return {**found, "few-step LoRA": by(few)}


def compare(found: dict[str, Way], wanted: list[Task]) -> list[dict[str, Any]]:
    """A row for each way."""
    clips: dict[str, list[Clip]] = {name: [] for name in found}
    for way in found.values():  # loads, compiles, warms
        way(wanted[0])
    for i, task in enumerate(wanted):
        names = list(found)
        for name in names[i % len(names) :] + names[: i % len(names)]:
            clips[name].append(found[name](task))
        print(f"{i + 1}/{len(wanted)} prompts", file=sys.stderr, flush=True)
    return [_row(name, clips[name], clips[EXACT], wanted) for name in found]


def _row(name: str, clips: list[Clip], exact: list[Clip], wanted: list[Task]) -> dict[str, Any]:
    scored = measure("t2v", zip(wanted, [clip.frames for clip in clips], strict=True))
    row: dict[str, Any] = {
        "way": name,
        "forwards": round(float(np.mean([clip.provenance["forwards"] for clip in clips])), 2),
        "seconds": round(float(np.median([sum(clip.seconds.values()) for clip in clips])), 3),
    }
    for part, taken in (("clip", _whole), ("denoise", lambda clip: clip.seconds["denoise"])):
        ratios = [taken(one) / taken(other) for one, other in zip(clips, exact, strict=True)]
        low, middle, high = np.percentile(ratios, (10, 50, 90))
        row[part] = {"of_exact": round(float(middle), 4), "10": round(float(low), 4), "90": round(float(high), 4)}
    row |= {"fidelity": scored["fidelity"], "shape_iou": scored["shape_iou"], "prompts": scored["prompts"]}
    if exact is not clips:
        found = [psnr(one.frames, other.frames) for one, other in zip(clips, exact, strict=True)]
        row |= {"psnr": round(float(np.mean(found)), 2), "psnr_least": round(min(found), 2)}
    return row


def _whole(clip: Clip) -> float:
    return sum(clip.seconds.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("build/demo-t2v-fp32"))
    parser.add_argument("--few", type=Path, default=Path("build/demo-t2v-4step-fp32"))
    parser.add_argument("--shares", nargs="*", choices=SHARES, default=["half", "third", "eighth"])
    parser.add_argument("--steps", nargs="*", type=int, default=[4, 8], help="of the base model, evenly spaced")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--fit", type=int, default=8, help="clips that schedules are fitted on")
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    options = EngineOptions(arguments.engine)
    base, few = (Pipeline(Bundle.open(path), options) for path in (arguments.base, arguments.few))
    plan = SchedulePlan("demo", arguments.fit, 4, guidance=GUIDANCE, engine=arguments.engine)
    made = schedules(base, arguments.shares, plan)
    rows = compare(ways(base, few, made, arguments.steps), tasks(arguments.prompts))
    if arguments.json:
        print(json.dumps({"rows": rows}, indent=1))
    else:
        for row in rows:
            print(
                f"{row['way']:20} {row['forwards']:6.1f} forwards, {row['clip']['of_exact']:.3f} of the seconds, fidelity "
                f"{row['fidelity']['mean']:.3f}, shape IoU {row['shape_iou']:.3f}, {row.get('psnr', float('inf')):.1f} dB"
            )


if __name__ == "__main__":
    main()
