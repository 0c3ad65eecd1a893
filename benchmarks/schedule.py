"""What a clip loses by fewer forwards: the demo at shares of them, on prompts that the schedules were not fitted on.

    python -m benchmarks.schedule --json
    python -m benchmarks.schedule --guidance 6 --tasks t2v --json
    python -m benchmarks.schedule --unlike --json

PSNR is to the same clip with every step computed (same noise), ``forwards`` is what clips took in the mean, with all that the guard
computed after all, of ``of``. ``steps_only_psnr`` is of simply taking as many steps. With ``--unlike``, prompts are of another kind than
those of the fit, and ``promised`` is the 5th percentile on prompts of that kind; ``unlike_strict`` is with a guard of 1.
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

from demo.fidelity import psnr, tasks
from demo.reader import shown
from reelquant.quant.calibration.data import CalibrationData
from reelquant.quant.schedule.budget import Budget
from reelquant.quant.schedule.make import SchedulePlan, cheapest
from reelquant.quant.schedule.measure import HeldOut
from reelquant.quant.schedule.trajectories import record
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.request import Request

SHARES = {"half": 1 / 2, "third": 1 / 3, "quarter": 1 / 4, "fifth": 1 / 5, "eighth": 1 / 8}
GUIDANCE = 4.0  # what the bars were measured at; the pipelines' own is 6
UNLIKE = (
    "two red circles and a blue square, still",
    "circle circle circle circle circle circle",
    "a purple hexagon spins",
    "red left square up white down",
    "a huge triangle moves down in the snow",
    "a white circle moves left and right",
    "moves",
    "nothing at all",
)


def measured(
    path: Path, scheduler: str, plan: SchedulePlan, prompts: int, shares: list[str], unlike: bool
) -> Iterator[dict[str, Any]]:
    bundle = Bundle.open(path)
    pipeline = Pipeline(bundle, EngineOptions(plan.engine))
    task, steps = bundle.manifest.task, plan.steps or bundle.manifest.defaults.steps
    wanted = tasks(prompts)

    def requests(given: list[str]) -> list[Request]:
        return [
            Request(prompt, each.image if task == "i2v" else None, seed=each.seed, steps=steps, latents=each.noise,
                    scheduler=scheduler, guidance=plan.guidance)
            for prompt, each in zip(given, wanted, strict=False)
        ]  # fmt: skip

    asked = requests([each.scene.caption for each in wanted])
    with tempfile.TemporaryDirectory() as folder:
        data = CalibrationData.load(plan.data).requests(task, plan.prompts, plan.seed, steps)
        own = [replace(each, scheduler=scheduler, guidance=plan.guidance) for each in data]
        seen = record(pipeline, own, Path(folder) / "seen")
        clips = record(pipeline, asked, Path(folder) / "unseen")
        unseen = HeldOut(pipeline, clips, shown)
        others = (
            HeldOut(pipeline, record(pipeline, requests(list(UNLIKE)), Path(folder) / "unlike")) if unlike else None
        )
        exact = [pipeline.decode(each.final) for each in clips]
        for name in shares:
            budget = Budget.parse(f"forwards<={SHARES[name]:.4f}")
            schedule = cheapest(pipeline, name, seen, unseen, budget, plan)
            row = {
                "task": task,
                "scheduler": scheduler,
                "precision": bundle.manifest.precision,
                "guidance": pipeline.resolve(asked[0]).guidance,
                "share": name,
                "kinds": schedule.kinds,
                **schedule.measured,
                "forwards": round(schedule.measured["forwards"] * 2 * steps, 2),
                "of": 2 * steps,
            }
            if others is not None:
                strict = replace(schedule, bounds=tuple(bound / plan.guard for bound in schedule.bounds))
                for key, each in (("unlike", schedule), ("unlike_strict", strict)):
                    found = others.measured(each)
                    row[key] = {
                        "promised": row["psnr_p5"],
                        "psnr": found["psnr"],
                        "psnr_least": found["psnr_least"],
                        "forwards": round(found["forwards"] * 2 * steps, 2),
                        "given_up": found["given_up"],
                    }
            fewer = [pipeline.generate(replace(each, steps=int(SHARES[name] * steps))).frames for each in asked]
            row["steps_only_psnr"] = round(float(np.mean([psnr(*pair) for pair in zip(fewer, exact, strict=True)])), 2)
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=Path, default=Path("build"))
    parser.add_argument("--tasks", nargs="+", default=["t2v", "i2v"])
    parser.add_argument("--schedulers", nargs="+", default=["ddim", "dpm"])
    parser.add_argument("--shares", nargs="+", choices=SHARES, default=list(SHARES))
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--prompts", type=int, default=16, help="held-out prompts")
    parser.add_argument("--fit", type=int, default=SchedulePlan.prompts, help="prompts that schedules are fitted on")
    parser.add_argument("--order", type=int, default=SchedulePlan.order)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--unlike", action="store_true", help="prompts of another kind too")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    plan = SchedulePlan(
        "demo", arguments.fit, guidance=arguments.guidance, order=arguments.order, engine=arguments.engine
    )
    rows = []
    for task in arguments.tasks:
        for scheduler in arguments.schedulers:
            path = arguments.bundles / f"demo-{task}-{arguments.precision}"
            for row in measured(path, scheduler, plan, arguments.prompts, arguments.shares, arguments.unlike):
                rows.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
    if arguments.json:
        print(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
