"""What a clip loses by fewer forwards: the demo at shares of them, on prompts that the schedules were not fitted on.

    python -m benchmarks.schedule --json

PSNR is to the same clip with every step computed (same noise). ``steps_only_psnr`` is of simply taking as many steps.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from demo.clips import ATTRIBUTES
from demo.fidelity import Task, psnr, tasks
from demo.reader import score
from reelquant.quant.calibration.data import CalibrationData
from reelquant.quant.schedule.make import SchedulePlan, fitted
from reelquant.quant.schedule.search import Costs, best_kinds, pruned
from reelquant.quant.schedule.trajectories import record
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.request import Request

SHARES = (1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 8)


def rows_of(path: Path, scheduler: str, plan: SchedulePlan, prompts: int, engine: str) -> Iterator[dict[str, Any]]:
    bundle = Bundle.open(path)
    pipeline = Pipeline(bundle, EngineOptions(engine))
    task, steps = bundle.manifest.task, plan.steps or bundle.manifest.defaults.steps
    wanted = tasks(prompts)

    def request(each: Task, **more: Any) -> Request:
        image = each.image if task == "i2v" else None
        made = Request(each.scene.caption, image, seed=each.seed, steps=steps, scheduler=scheduler, latents=each.noise)
        return replace(made, guidance=plan.guidance, **more)

    with tempfile.TemporaryDirectory() as folder:
        data = CalibrationData.load(plan.data).requests(task, plan.prompts, plan.seed, steps)
        asked = [replace(each, scheduler=scheduler, guidance=plan.guidance) for each in data]
        seen = record(pipeline, asked, Path(folder))
        costs = Costs(seen, plan.order)
        found = pruned(costs)
        whole = [pipeline.sample(request(each)) for each in wanted]
        frames = [pipeline.decode(latents) for latents in whole]
        exact = fidelity(wanted, frames)
        for share in SHARES:
            computed = max(1, int(share * steps))
            schedule = fitted(pipeline, bundle, f"of-{computed}", seen, best_kinds(costs, 2 * computed, found), plan)
            clips = [pipeline.generate(request(each, schedule=schedule)) for each in wanted]
            values = [psnr(clip.frames, other) for clip, other in zip(clips, frames, strict=True)]
            fewer = [pipeline.generate(request(each, steps=computed)).frames for each in wanted]
            latents = [pipeline.sample(request(each, schedule=schedule)) for each in wanted]
            yield {
                "task": task,
                "scheduler": scheduler,
                "precision": bundle.manifest.precision,
                "computed": computed,
                "forwards": round(float(np.mean([clip.provenance["forwards"] for clip in clips])), 2),
                "of": 2 * steps,
                "psnr": round(float(np.mean(values)), 2),
                "psnr_p5": round(float(np.percentile(values, 5)), 2),
                "psnr_least": round(min(values), 2),
                "rel_l2": float(np.mean([relative(a, b) for a, b in zip(latents, whole, strict=True)])),
                "fidelity": fidelity(wanted, [clip.frames for clip in clips]),
                "fidelity_exact": exact,
                "steps_only_psnr": round(float(np.mean([psnr(a, b) for a, b in zip(fewer, frames, strict=True)])), 2),
            }


def fidelity(wanted: list[Task], clips: list[Any]) -> float:
    """The share of attributes that clips show as their prompts say."""
    right = sum(sum(score(each.scene, clip).values()) for each, clip in zip(wanted, clips, strict=True))
    return round(right / len(wanted) / len(ATTRIBUTES), 4)


def relative(found: Any, wanted: Any) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=Path, default=Path("build"))
    parser.add_argument("--tasks", nargs="+", default=["t2v", "i2v"])
    parser.add_argument("--schedulers", nargs="+", default=["ddim", "dpm"])
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--prompts", type=int, default=16, help="held-out prompts")
    parser.add_argument("--fit", type=int, default=SchedulePlan.prompts, help="prompts that schedules are fitted on")
    parser.add_argument("--order", type=int, default=SchedulePlan.order)
    parser.add_argument("--guidance", type=float, help="default: the bundle's")
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    plan = SchedulePlan("demo", arguments.fit, guidance=arguments.guidance, order=arguments.order)
    rows = []
    for task in arguments.tasks:
        for scheduler in arguments.schedulers:
            path = arguments.bundles / f"demo-{task}-{arguments.precision}"
            for row in rows_of(path, scheduler, plan, arguments.prompts, arguments.engine):
                rows.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
    if arguments.json:
        print(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
