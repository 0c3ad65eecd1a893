"""Which products stay high: those whose quantization costs the output most for what it saves, until a budget is met.

Squared errors of single products add up to that of all of them (to a few per cent, ``python -m benchmarks.sensitivity``):
their roundings have nothing to do with each other. So a set's error is foretold from single ones, and then measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from reelquant.quant.calibration.ranges import Ranges
from reelquant.quant.evaluation.sensitivity import Probe, opened_probe
from reelquant.quant.evaluation.teacher import Step
from reelquant.quant.graph.graph_files import load_graph, load_mapped, save_graphs
from reelquant.quant.graph.graph_stats import graph_stats
from reelquant.quant.graph.linears import linear_nodes
from reelquant.quant.passes.insert_qdq import insert_qdq
from reelquant.quant.recipe import Recipe, Rule
from reelquant.quant.search.budget import Budget
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.engine import REFERENCE_ENGINE
from reelquant.runtime.engines.registry import open_onnx
from reelquant.runtime.errors import BadInput
from reelquant.runtime.files.atomic import scratch_folder
from reelquant.runtime.progress import SILENT, Progress
from reelquant.runtime.tune.timing import in_turns, step_feeds

_ROUNDS = 6  # of foretelling and measuring
_TIMED = 7


@dataclass(frozen=True)
class SearchResult:
    """A recipe that keeps the budget; each product's error alone, which stay high, and the whole's error."""

    recipe: Recipe
    errors: Mapping[str, float]
    high: tuple[str, ...]
    rel_l2: float


def search(
    bundle: Bundle,
    ranges: Ranges,
    recipe: Recipe,
    budget: Budget,
    steps: Sequence[Step],
    engine: str,
    base: str = "fp32",
    progress: Progress = SILENT,
) -> SearchResult:
    """The recipe with the fewest bytes high that keeps ``rel_l2``, or with the least error within a size or a time.

    Errors are those of the reference engine, seconds those of ``engine``.

    Raises:
        BadInput: the budget is not kept with all quantized that ``recipe`` names, or only with nothing, or in any case.
    """
    graph = load_graph(bundle.graph("transformer", "main"))
    bytes_of = {linear.name: 4 * linear.shape[0] * linear.shape[1] for linear in linear_nodes(graph)}
    measures: dict[str, Callable[[Recipe], float]] = {
        "size": lambda tried: _bytes(bundle, ranges, tried, base),
        "seconds": lambda tried: _seconds(bundle, ranges, tried, engine),
    }
    measure = measures.get(budget.kind)
    if measure is not None:
        least, most = measure(recipe), measure(replace(recipe, rules=(*recipe.rules, Rule("*", "high"))))
        if least > budget.limit:
            said = f"all quantized that {recipe.name} names comes to {budget.said(least)}"
            raise BadInput(f"{said}; {budget} needs another recipe")
        if most <= budget.limit:
            raise BadInput(f"unquantized it comes to {budget.said(most)}, which keeps {budget}; give less")
    with opened_probe(bundle, ranges, recipe, steps, REFERENCE_ENGINE, progress) as probe:
        errors = probe.errors(progress)
        # An attention has no bytes of its own; it counts as much as a linear does on average.
        known = [bytes_of[name] for name in probe.products if name in bytes_of]
        costs = {name: bytes_of.get(name, statistics.mean(known)) for name in probe.products}
        order = sorted(probe.products, key=lambda name: -(errors[name] ** 2) / costs[name])
        if measure is None:
            high = _within_error(probe, errors, costs, order, budget.limit)
            if len(high) == len(order):
                raise BadInput(
                    f"{budget} leaves nothing quantized of what {recipe.name} names; allow more, or use fp32"
                )
        else:
            high = _most(order, lambda count: measure(_kept(recipe, order[:count])) <= budget.limit)
        found = replace(
            _kept(recipe, high, errors),
            name=f"{recipe.name}-within",
            description=f"{recipe.name}, with {len(high)} of {len(order)} products left high to keep {budget}",
        )
        return SearchResult(found, errors, tuple(high), probe.error(set(order) - set(high)))


def _kept(recipe: Recipe, high: Sequence[str], errors: Mapping[str, float] | None = None) -> Recipe:
    """``recipe``, but these products high."""
    whys = {name: f"alone it makes the output differ by {errors[name]:.5f}" if errors else "" for name in high}
    return replace(recipe, rules=(*recipe.rules, *(Rule(name, "high", why=whys[name]) for name in high)))


def _within_error(
    probe: Probe, errors: Mapping[str, float], costs: Mapping[str, float], order: Sequence[str], limit: float
) -> list[str]:
    """The cheapest set that is foretold to keep ``limit``; where measuring says otherwise, again with a stricter one."""
    aim = limit
    high: list[str] = []
    for _ in range(_ROUNDS):
        high = _cheapest(errors, costs, order, aim)
        measured = probe.error(set(order) - set(high))
        if measured <= limit:
            return high
        aim *= limit / measured * 0.99
    for name in order:  # the foretelling does not hold here: one more at a time, measured
        if name not in high:
            high.append(name)
            if probe.error(set(order) - set(high)) <= limit:
                return high
    return list(order)


def _cheapest(errors: Mapping[str, float], costs: Mapping[str, float], order: Sequence[str], limit: float) -> list[str]:
    """Take in ``order`` until the rest's errors keep ``limit``; then give back what need not have been taken, dearest first."""
    left = sum(errors[name] ** 2 for name in order)
    high: list[str] = []
    for name in order:
        if left <= limit**2:
            break
        left -= errors[name] ** 2
        high.append(name)
    for name in sorted(high, key=lambda name: -costs[name]):
        if left + errors[name] ** 2 <= limit**2:
            left += errors[name] ** 2
            high.remove(name)
    return high


def _most(order: Sequence[str], fits: Callable[[int], bool]) -> list[str]:
    """The longest beginning of ``order`` that fits, by bisection; none of it does fit."""
    keeps, breaks = 0, len(order) + 1
    while breaks - keeps > 1:
        middle = (keeps + breaks) // 2
        if fits(middle):
            keeps = middle
        else:
            breaks = middle
    return list(order[:keeps])


def _bytes(bundle: Bundle, ranges: Ranges, recipe: Recipe, base: str) -> float:
    """Of the transformer's weights when all that is not quantized is stored in ``base``."""
    model = _unrounded(bundle, ranges, recipe)
    stored = graph_stats(model)["weight_bytes_by_dtype"]
    return float(sum(count / (2 if base != "fp32" and dtype == "FLOAT" else 1) for dtype, count in stored.items()))


def _seconds(bundle: Bundle, ranges: Ranges, recipe: Recipe, engine: str) -> float:
    """The median of one guided step at the bundle's size."""
    model = _unrounded(bundle, ranges, recipe)
    with scratch_folder(bundle.path, "search") as folder:
        save_graphs(folder, {"main": model})
        session = open_onnx(engine, folder / "main.onnx")
        return statistics.median(in_turns({"": (session, step_feeds(bundle))}, _TIMED)[""])


def _unrounded(bundle: Bundle, ranges: Ranges, recipe: Recipe) -> ir.Model:
    """Quantized the quick way: neither bytes nor time depend on how weights are rounded."""
    model = load_mapped(bundle.graph("transformer", "main"))
    insert_qdq(model, ranges, replace(recipe, method=replace(recipe.method, rounding="nearest")))
    return model
