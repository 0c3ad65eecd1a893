"""What the budget search finds, against the hand rule that keeps the first and the last block high.

    python -m benchmarks.sensitivity build/demo-t2v-fp32 --data demo --recipe int8 --json

``ends_high``: the rule's error (teacher-forced relative L2 of the velocity on held-out steps), layers and bytes left high.
``search``: the same of the search that is given the rule's error as its budget. ``additive``: the root of the summed
squares of single products' errors over the error of all together.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from reelquant.quant.calibration.calibrate import calibrate
from reelquant.quant.calibration.data import CalibrationData
from reelquant.quant.calibration.plan import CalibrationPlan
from reelquant.quant.evaluation.sensitivity import opened_probe
from reelquant.quant.evaluation.teacher import Trial
from reelquant.quant.graph.graph_files import load_graph
from reelquant.quant.graph.linears import linear_nodes
from reelquant.quant.recipe import Recipe
from reelquant.quant.search.budget import Budget
from reelquant.quant.search.search import search
from reelquant.runtime.bundle import Bundle


def measured(bundle: Bundle, data: str, recipe: Recipe, trial: Trial) -> dict[str, Any]:
    ranges = calibrate(bundle, CalibrationData.load(data), CalibrationPlan())
    steps = trial.record(bundle)
    sizes = {
        linear.name: 4 * linear.shape[0] * linear.shape[1]
        for linear in linear_nodes(load_graph(bundle.graph("transformer", "main")))
    }
    with opened_probe(bundle, ranges, recipe, steps, trial.engine) as probe:
        blocks = sorted({int(name.split(".")[1]) for name in probe.products})
        ends = tuple(f"transformer_blocks.{number}." for number in (blocks[0], blocks[-1]))
        high = [name for name in probe.products if name.startswith(ends)]
        error, whole = probe.error(set(probe.products) - set(high)), probe.error(probe.products)

    def facts(names: list[str], rel_l2: float) -> dict[str, Any]:
        return {"rel_l2": round(rel_l2, 5), "layers": len(names), "bytes": sum(sizes.get(name, 0) for name in names)}

    found = search(bundle, ranges, recipe, Budget("rel_l2", error), steps, trial.engine)
    return {
        "recipe": recipe.name,
        "quantized": {"rel_l2": round(whole, 5), "layers": len(probe.products)},
        "ends_high": facts(high, error),
        "search": facts(list(found.high), found.rel_l2),
        "high": found.high,
        "additive": round(sum(error**2 for error in found.errors.values()) ** 0.5 / whole, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="an fp32 bundle")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--recipe", default="int8")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    trial = Trial(arguments.data)
    found = measured(Bundle.open(arguments.bundle), arguments.data, Recipe.load(arguments.recipe), trial)
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    rule, ours = found["ends_high"], found["search"]
    print(f"{found['recipe']}: all {found['quantized']['layers']} quantized: {found['quantized']['rel_l2']:.5f}")
    for name, row in (("first and last block high", rule), ("search", ours)):
        print(f"{name}: {row['rel_l2']:.5f}, {row['layers']} layers high, {row['bytes'] / 1e6:.2f} MB of fp32 weights")
    print(f"sum of single errors over that of all: {found['additive']:.3f}")


if __name__ == "__main__":
    main()
