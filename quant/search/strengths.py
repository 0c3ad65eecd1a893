"""Search the strength of channel balancing, for each group of linears that read one activation.

A stronger balance makes finer steps, and clips more of what calibration did not see. Which of the two costs more is
measured on clips that calibration did not see either; an activation's own error would not tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from reelquant.quant.calibration.ranges import Ranges
from reelquant.quant.evaluation.sensitivity import opened_probe
from reelquant.quant.evaluation.teacher import Step
from reelquant.quant.graph.graph_files import load_graph
from reelquant.quant.graph.linears import linear_nodes
from reelquant.quant.recipe import Recipe, Rule
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.errors import BadInput
from reelquant.runtime.progress import SILENT, Progress

CANDIDATES = (0.5, 0.65, 0.8, 0.9)


def search_strengths(
    bundle: Bundle, ranges: Ranges, recipe: Recipe, steps: Sequence[Step], engine: str, progress: Progress = SILENT
) -> Recipe:
    """``recipe`` with a strength of :data:`CANDIDATES` for every balanced linear, by what it costs the velocity.

    Raises:
        BadInput: the recipe does not balance.
    """
    if recipe.method.strength is None:
        raise BadInput(f"recipe {recipe.name} balances no channels; give its method a strength")
    costs: dict[str, dict[float, float]] = {}
    for strength in CANDIDATES:
        rules = tuple(replace(rule, strength=None) for rule in recipe.rules)
        tried = replace(recipe, rules=rules, method=replace(recipe.method, strength=strength))
        with opened_probe(bundle, ranges, tried, steps, engine) as probe:
            for name, error in probe.errors(progress).items():
                costs.setdefault(name, {})[strength] = error**2
    groups: dict[str, list[str]] = {}
    for linear in linear_nodes(load_graph(bundle.graph("transformer", "main"))):
        if linear.name in costs:
            groups.setdefault(linear.activation, []).append(linear.name)
    found: list[Rule] = []
    nodes = list(costs)
    resolved = recipe.for_blocks(nodes)
    for names in groups.values():
        best = min(CANDIDATES, key=lambda strength: sum(costs[name][strength] for name in names))
        for name in names:
            rule = resolved.rule_of(name)
            assert rule is not None
            found.append(replace(rule, match=name, strength=best))
    return replace(recipe, name=f"{recipe.name}-tuned", rules=(*recipe.rules, *found))
