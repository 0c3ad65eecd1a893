"""A recipe as it came out: every linear and attention, its numerics, why, and what it lost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import onnx_ir as ir

from reelquant.quant.graph.attentions import attention_nodes
from reelquant.quant.graph.linears import linear_nodes
from reelquant.quant.numerics import NUMERICS, High
from reelquant.quant.recipe import Recipe


@dataclass(frozen=True)
class Row:
    """``rel_l2`` is of the product's output on the reference's input, the worst of all steps; None where it was not measured."""

    name: str
    numerics: str
    strength: float | None
    rounding: str
    why: str
    rel_l2: float | None


def explain(
    model: ir.Model, recipe: Recipe, skipped: Mapping[str, str], errors: Mapping[str, float | None]
) -> list[Row]:
    """One line per linear and attention of ``model``, the fp32 graph, in its order."""
    recipe = recipe.for_blocks([node.name or "" for node in model.graph])
    names = [linear.name for linear in linear_nodes(model)]
    lines = []
    for name in [*names, *(attention.name for attention in attention_nodes(model))]:
        rule, method = recipe.rule_of(name), recipe.method_of(name)
        named = "high" if rule is None or name in skipped else rule.numerics
        why = skipped.get(name) or (rule.why or f"matches {rule.match}" if rule else "no rule matches")
        numerics, stored = NUMERICS[named], name in names
        balanced = stored and method.balances and not isinstance(numerics, High) and numerics.balances
        rounded = stored and not isinstance(numerics, High) and numerics.rounds
        strength = (method.strength or 0.0) if balanced else None
        lines.append(Row(name, named, strength, method.rounding if rounded else "", why, errors.get(name)))
    return lines


def as_table(lines: Iterable[Row]) -> str:
    """For a terminal."""
    rows = [("linear or attention", "numerics", "balance", "rounding", "rel. L2", "why")]
    for line in lines:
        strength = "" if line.strength is None else f"{line.strength:g}"
        error = "" if line.rel_l2 is None else f"{line.rel_l2:.5f}"
        rows.append((line.name, line.numerics, strength, line.rounding, error, line.why))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def as_json(lines: Iterable[Row]) -> list[dict[str, object]]:
    return [asdict(line) for line in lines]
