"""What a whole clip takes on this CPU, cold and warm: ours, exact and by a schedule, beside diffusers.

    python -m benchmarks.cpu_clip demo --json
    python -m benchmarks.cpu_clip 2b-width --json
    python -m benchmarks.cpu_clip growth --json

``demo`` is the demo's text-to-video checkpoint at its own size, ``2b-width`` a random one of 2B's width with four layers and its whole VAE,
9 frames of 256x256; both with 50 steps. A runner is a process of its own that makes the same clip --clips times and writes it: the first is cold, from
the start of the process, the last warm. Runners take turns, --turns times. Diffusers runs eager in float32 and bf16, and compiled in bf16. Ours is the bundle and the engine that `reelquant tune` found to be the fastest. ``balanced`` is the schedule with the
fewest forwards that keeps 37 dB to our own exact clip on held-out prompts, and on the demo its fidelity. ``growth`` fits seconds of a step
to 6·D·N + N² (N tokens of width D) over frames and pixels, and of decoding to pixels.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.random_checkpoint import write_checkpoint
from benchmarks.variants import VARIANTS
from demo.fidelity import psnr
from reelquant.export.road import ExportPlan, export_checkpoint
from reelquant.quant.calibration.plan import CalibrationPlan
from reelquant.quant.schedule.budget import Budget
from reelquant.quant.schedule.make import SchedulePlan, make_schedule
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.machine.cpu_units import instruction_sets
from reelquant.runtime.machine.doctor import machine
from reelquant.runtime.media.video import Clip, read_clip
from reelquant.runtime.sizes import Size
from reelquant.runtime.tune.measure import candidates, measure, operations
from reelquant.runtime.tune.record import remember

PROMPT = "a red circle moves right on a white background"
STEPS = 50
DIFFUSERS = ("diffusers eager fp32", "diffusers eager bf16", "diffusers compiled bf16")
NAME = "balanced"


def made_by(arguments: argparse.Namespace, runner: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the first clip, from the start of the process, and of the last; the peak of memory and the first step of the first."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.clip_runners",
        json.dumps(runner),
        json.dumps(asked),
        str(arguments.clips),
    ]
    command.append(str(arguments.work / f"{runner['name'].replace(' ', '-')}.npy"))
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append((time.monotonic() - began, json.loads(line)))
    if process.returncode:
        raise RuntimeError(f"{runner['name']} failed")
    started = lines[0][0] - lines[0][1]["seconds"]  # until its code ran
    last = lines[-1][1]
    return {
        "cold": lines[0][0],
        "warm": last["seconds"],
        "cold_first_step": started + lines[0][1]["first_step"],
        "warm_first_step": last["first_step"],
        "peak_rss_bytes": last["peak_rss_bytes"],
        **{key: last[key] for key in ("forwards", "engine") if key in last},
    }


def demo_bundles(bundles: Path) -> tuple[Path, list[Bundle], str]:
    return (
        Path("demo/checkpoints/t2v"),
        [Bundle.open(bundles / f"demo-t2v-{each}") for each in ("fp32", "int8")],
        "demo",
    )


def wide_bundles(work: Path) -> tuple[Path, list[Bundle], str]:
    """A random checkpoint of 2B's width, four layers deep, in fp32 and in INT8 as the recipe says, the decoder too."""
    checkpoint, size = work / "2b-width", Size(9, 256, 256)
    if not (checkpoint / "model_index.json").exists():
        write_checkpoint(checkpoint, VARIANTS["cogvideox-2b"].layers(4))
    made = []
    for precision in ("fp32", "int8"):
        # Few and small clips, and no gate: random weights draw nothing, and what is measured here is time.
        sampling = CalibrationPlan(prompts=3, steps=2, size=Size(9, 128, 128))
        plan = ExportPlan(precision, "openvino", size, calibration=sampling, gate=False)
        out = work / f"2b-width-{precision}"
        made.append(export_checkpoint(str(checkpoint), out, plan, work / "stages", replace=True))
    return checkpoint, made, "general"


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    checkpoint, bundles, data = demo_bundles(arguments.bundles) if arguments.what == "demo" else wide_bundles(work)
    size = bundles[0].manifest.defaults.size
    asked = {"prompt": PROMPT, "steps": arguments.steps, "guidance": arguments.guidance, "size": str(size)}
    ways = {}
    for bundle in bundles:
        found = measure(bundle, size, candidates(bundle), arguments.seconds)[0]
        remember(bundle, found.tuned(size))
        ways[bundle.path] = found
    best = min(bundles, key=lambda bundle: ways[bundle.path].clip_seconds)
    scheduled = work / f"{best.path.name}-{NAME}-{arguments.steps}"
    if not (scheduled / "manifest.json").exists():
        plan = SchedulePlan(
            data, arguments.fit, arguments.held_out, arguments.steps, arguments.guidance,
            scorer="demo.reader:shown" if data == "demo" else None, engine=ways[best.path].candidate.engine,
        )  # fmt: skip
        limits = "psnr>=37, fidelity>=-0.01" if data == "demo" else "psnr>=37"
        make_schedule(best, scheduled, NAME, Budget.parse(limits), plan)
    runners = [
        {"name": name, "checkpoint": str(checkpoint)}
        for name in DIFFUSERS
        if not (arguments.no_compile and "compiled" in name)
    ]
    runners += [{"name": f"reelquant {bundle.manifest.precision}", "bundle": str(bundle.path)} for bundle in bundles]
    runners.append({"name": f"reelquant {best.manifest.precision} {NAME}", "bundle": str(scheduled), "schedule": NAME})
    taken: dict[str, list[dict[str, Any]]] = {runner["name"]: [] for runner in runners}
    for turn in range(arguments.turns):
        for runner in runners:
            print(f"turn {turn + 1} of {arguments.turns}: {runner['name']}", file=sys.stderr)
            taken[runner["name"]].append(made_by(arguments, runner, asked))
    result = described(taken)
    exact, balanced = (clip_of(work, f"reelquant {best.manifest.precision}{more}") for more in ("", f" {NAME}"))
    return {
        "cpu": machine().cpu, "units": instruction_sets(), "what": arguments.what, "size": str(size),
        "steps": arguments.steps, "guidance": arguments.guidance,
        "tuned": {str(path): way.as_json() for path, way in ways.items()},
        "schedule_promises": json.loads((scheduled / "schedules" / f"{NAME}.json").read_text())["measured"],
        "psnr_balanced_to_exact": round(psnr(balanced.frames, exact.frames), 2), **result,
    }  # fmt: skip


def clip_of(work: Path, name: str) -> Clip:
    return read_clip(work / f"{name.replace(' ', '-')}.npy")


def described(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians of every runner, with the least and the most, and their ratios to the best of diffusers."""
    rows: list[dict[str, Any]] = []
    best = {
        kind: min(
            statistics.median(each[kind] for each in turns) for name, turns in found.items() if "diffusers" in name
        )
        for kind in ("cold", "warm")
    }
    for name, turns in found.items():
        row: dict[str, Any] = {"runner": name}
        for kind in ("cold", "warm"):
            seconds = [each[kind] for each in turns]
            row[kind] = round(statistics.median(seconds), 3)
            row[f"{kind}_spread"] = [round(min(seconds), 3), round(max(seconds), 3)]
            row[f"{kind}_times_best_diffusers"] = round(best[kind] / statistics.median(seconds), 2)
        for key in ("cold_first_step", "warm_first_step"):
            row[key] = round(statistics.median(each[key] for each in turns), 3)
        row["peak_rss_bytes"] = max(each["peak_rss_bytes"] for each in turns)
        row |= {key: turns[-1][key] for key in ("forwards", "engine") if key in turns[-1]}
        rows.append(row)
    return {"rows": rows}


def growth(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a step and of decoding over sizes, and how well the counts of operations say them."""
    _, bundles, _ = wide_bundles(arguments.work)
    bundle = bundles[-1]
    sizes = [
        Size.parse(each) for each in ("9x128x128", "9x256x256", "17x256x256", "25x256x256", "9x384x384", "17x384x384")
    ]
    rows: list[dict[str, Any]] = []
    for size in sizes:
        way = candidates(bundle)[0]
        (found,) = measure(bundle, size, (way,), 1000.0)
        rows.append({"size": str(size), "step_seconds": found.step_seconds, "operations": operations(bundle, size),
                     "decode_seconds": found.decode_seconds, "pixels": size.frames * size.height * size.width})  # fmt: skip
        print(json.dumps(rows[-1]), file=sys.stderr)
    return {
        "what": "growth", "engine": way.engine, "precision": bundle.manifest.precision, "rows": rows,
        "step": fitted([row["operations"] for row in rows], [row["step_seconds"] for row in rows]),
    }  # fmt: skip


def fitted(counts: list[float], seconds: list[float]) -> dict[str, Any]:
    """seconds = a · count + b by least squares of relative errors, and the errors that are left."""
    matrix: NDArray[np.float64] = np.stack([np.array(counts) / seconds, 1 / np.array(seconds)], 1)
    (slope, start), *_ = np.linalg.lstsq(matrix, np.ones(len(counts)), rcond=None)
    left = [round(float((slope * count + start) / taken - 1), 3) for count, taken in zip(counts, seconds, strict=True)]
    return {"slope": float(slope), "start": float(start), "relative_errors": left}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("demo", "2b-width", "growth"))
    parser.add_argument("--bundles", type=Path, default=Path("build"), help="where make export put the demo's")
    parser.add_argument("--work", type=Path, default=Path("build/cpu"), help="keeps what is made for this")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument(
        "--clips", type=int, default=3, help="of each process; what torch compiles it compiles again for the second"
    )
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile, which needs a C++ compiler")
    parser.add_argument("--seconds", type=float, default=20.0, help="what tune takes for each bundle")
    parser.add_argument("--fit", type=int, default=SchedulePlan.prompts, help="clips that the schedule is fitted on")
    parser.add_argument("--held-out", type=int, default=SchedulePlan.held_out)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    result = growth(arguments) if arguments.what == "growth" else compare(arguments)
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    for row in result["rows"]:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
