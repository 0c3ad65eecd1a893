"""The least time a clip can take on a card: of every layer, what it multiplies or what it moves, whichever takes the card longer.

A lower bound by the card's own limits (Williams et al., Roofline, 2009), and no measurement: kernels reach a part of them, and what lies between kernels, and
between stages, is not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reelquant.runtime.machine.cards import Card
from reelquant.runtime.models.cogvideox.stages import Stage

Record = Mapping[str, Any]


def run_seconds(layers: Sequence[Mapping[str, Any]] | None, card: Card) -> float | None:
    """Of one run of an engine, from its layers as :func:`reelquant.runtime.engines.tensorrt.layers.summary` has them; None where they are
    not known, or the card does not multiply in one of their formats.
    """
    found = [card.seconds(each["format"], each["flops"], each["bytes"]) for each in layers or ()]
    known = [each for each in found if each is not None]
    return sum(known) if known and len(known) == len(found) else None


def _is_static(record: Record) -> bool:
    """Whether its layers have shapes, which those of an engine for a range of sizes do not."""
    return all(len(set(values)) == 1 for values in record["profile"].values())


def clip_seconds(
    records: Mapping[str, Sequence[Record]], stages: Sequence[Stage], card: Card
) -> dict[str, float] | None:
    """By stage; None where it is not known of one, as of engines for a range of sizes."""
    found: dict[str, float] = {}
    for stage in stages:
        for record in records[stage.component]:
            once = run_seconds(record["evidence"]["layers"], card) if _is_static(record) else None
            if once is None:
                return None
            found[stage.component] = found.get(stage.component, 0.0) + once * stage.runs[record["graph"]]
    return found
