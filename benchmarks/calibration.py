"""How many samples a calibration needs, and whether a scale for each part of the denoising would pay.

    python -m benchmarks.calibration build/demo-t2v-fp32 --data demo --json

``curve``: for 1, 2, 4, … prompts, the error of scales, |1 - largest(these prompts) / largest(all)|, mean over tensors and
over choices of prompts; and ``rel_l2`` of the int8 transformer calibrated on the first so many, on held-out steps.
``timesteps``: the largest value within a fifth of the timesteps over that of all, mean over tensors; 1 says that one
static scale loses nothing. The same for the unconditional half.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelquant.quant.calibration.calibrate import calibrate
from reelquant.quant.calibration.data import CalibrationData
from reelquant.quant.calibration.plan import CalibrationPlan
from reelquant.quant.calibration.ranges import Ranges
from reelquant.quant.evaluation.teacher import Step, Trial, pooled_rel_l2, velocities
from reelquant.quant.graph.graph_files import load_graph, load_mapped
from reelquant.quant.graph.linears import linear_nodes
from reelquant.quant.graph.scratch_session import scratch_session
from reelquant.quant.passes.insert_qdq import insert_qdq
from reelquant.quant.recipe import Recipe
from reelquant.runtime.bundle import Bundle

_CHOICES = 20
_GROUPS = 5


def magnitudes(ranges: Ranges, names: list[str]) -> NDArray[np.float32]:
    """The largest magnitude of each tensor in each sample: [tensors, samples]."""
    return np.stack([np.maximum(ranges.high[name], -ranges.low[name]) for name in names])


def scale_error(ranges: Ranges, names: list[str], prompts: int) -> float:
    largest, rng = magnitudes(ranges, names), np.random.default_rng(0)
    whole, found = largest.max(axis=1), []
    for _ in range(_CHOICES):
        chosen = rng.choice(ranges.provenance.prompts, prompts, replace=False)
        part = largest[:, np.isin(ranges.samples.prompt, chosen)].max(axis=1)
        found.append(float(np.mean(1 - part / whole)))
    return float(np.mean(found))


def group_share(ranges: Ranges, names: list[str], groups: NDArray[np.int64]) -> float:
    """The mean of each group's largest magnitude over that of all samples."""
    largest = magnitudes(ranges, names)
    whole = largest.max(axis=1)
    return float(np.mean([np.mean(largest[:, groups == group].max(axis=1) / whole) for group in np.unique(groups)]))


def int8_error(bundle: Bundle, ranges: Ranges, steps: list[Step]) -> float:
    model = load_mapped(bundle.graph("transformer", "main"))
    insert_qdq(model, ranges, Recipe.load("int8"))
    with scratch_session(model, bundle.path, "openvino") as plan:
        return pooled_rel_l2(velocities(plan, steps), [step.velocity for step in steps])


def measured(bundle: Bundle, data: str, most: int, steps: int) -> dict[str, Any]:
    calibration = CalibrationData.load(data)
    # The last four are held out, and no calibration sees them.
    held_out = Trial(data, prompts=4, steps=5).record(bundle)
    counts = [count for count in (1, 2, 4, 8, 16, 32, 64) if count < most] + [most]
    plan = CalibrationPlan(steps=steps)
    ranges = {count: calibrate(bundle, calibration, replace(plan, prompts=count)) for count in counts}
    everything = ranges[most]
    linears = linear_nodes(load_graph(bundle.graph("transformer", "main")))
    names = sorted({linear.activation for linear in linears if ".attn1." in linear.name or ".ff." in linear.name})
    order = np.unique(everything.samples.timestep)
    fifths = np.searchsorted(order, everything.samples.timestep) * _GROUPS // len(order)
    return {
        "samples_per_prompt": 2 * steps,
        "curve": [
            {
                "prompts": count,
                "scale_error": round(scale_error(everything, names, count), 4),
                "rel_l2": round(int8_error(bundle, ranges[count], held_out), 5),
            }
            for count in counts
        ],
        "timesteps": round(group_share(everything, names, fifths), 4),
        "unconditional": round(group_share(everything, names, everything.samples.conditional.astype(np.int64)), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="an fp32 bundle")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--most", type=int, default=28, help="prompts that all other numbers are held against")
    parser.add_argument("--steps", type=int, default=CalibrationPlan.steps)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measured(Bundle.open(arguments.bundle), arguments.data, arguments.most, arguments.steps)
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    print("| prompts | samples | scale error | int8 rel. L2 |\n|---|---|---|---|")
    for row in found["curve"]:
        samples = row["prompts"] * found["samples_per_prompt"]
        print(f"| {row['prompts']} | {samples} | {row['scale_error']:.1%} | {row['rel_l2']:.5f} |")
    print(f"\nLargest value within a fifth of the timesteps, of the largest of all: {found['timesteps']:.1%}")
    print(f"Within the conditional or the unconditional half: {found['unconditional']:.1%}")


if __name__ == "__main__":
    main()
