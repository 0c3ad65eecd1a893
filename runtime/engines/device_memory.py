"""What a clip takes of a device's own memory, stage by stage, and how it is run in what is free.

Activations lie in one block that all stages share, as large as the largest stage's. Everything else is each stage's own: with all of them
loaded, it adds up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from reelquant.runtime.errors import BadInput

KEPT, RELOADED = "keep", "reload"


@dataclass(frozen=True)
class StageMemory:
    """Bytes of one stage: its engines, what they compute in, what they read and write, and the caches of a stream, which are there twice:
    those that are read, and those that are written.
    """

    name: str
    weights: int
    activations: int
    tensors: int
    caches: int = 0

    @property
    def alone(self) -> int:
        """With no other stage in memory."""
        return self.own + self.activations

    @property
    def own(self) -> int:
        """What no other stage shares."""
        return self.weights + self.tensors + self.caches

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "alone": self.alone}


@dataclass(frozen=True)
class ClipMemory:
    """What a clip takes, by stage in the order in which they run. ``ways`` says what more modest clips would take, by how they are asked
    for, the least modest first.
    """

    stages: tuple[StageMemory, ...]
    ways: Callable[[], Mapping[str, Sequence[StageMemory]]] = dict


def kept_bytes(stages: Iterable[StageMemory]) -> int:
    """With all of them loaded, for the next clip to use again."""
    found = list(stages)
    return sum(stage.own for stage in found) + max((stage.activations for stage in found), default=0)


def choose(stages: Sequence[StageMemory], free: int) -> str | None:
    """ "keep" where all stages fit into ``free`` bytes together, "reload" where each fits alone, else None."""
    if kept_bytes(stages) <= free:
        return KEPT
    return RELOADED if all(stage.alone <= free for stage in stages) else None


def lacking(stages: Sequence[StageMemory], free: int, keep: bool | None) -> str | None:
    """What does not fit into ``free`` bytes, in words; None where all does. ``keep`` True: with all of them loaded."""
    if keep and kept_bytes(stages) > free:
        return f"all stages together need {_gb(kept_bytes(stages))} ({', '.join(map(_short, stages))})"
    over = [stage for stage in stages if stage.alone > free]
    if not over:
        return None
    return "; ".join(f"{stage.name} needs {_gb(stage.alone)} ({', '.join(_parts(stage))})" for stage in over)


def check_room(
    stages: Sequence[StageMemory],
    free: int,
    keep: bool | None,
    ways: Callable[[], Mapping[str, Sequence[StageMemory]]],
) -> bool:
    """Whether networks are kept loaded: ``keep`` where it is said, else as ``free`` bytes allow. ``ways`` are other ways to make the clip,
    each with what it would take.

    Raises:
        BadInput: it does not fit; the message says which stage needs what, what is free, and what would fit.
    """
    if missing := lacking(stages, free, keep):
        said = "; ".join(advice(stages, free, keep, ways()))
        raise BadInput(f"this clip does not fit on the GPU, where {_gb(free)} are free: {missing}; {said}")
    return choose(stages, free) == KEPT if keep is None else keep


def advice(
    stages: Sequence[StageMemory], free: int, keep: bool | None, ways: Mapping[str, Sequence[StageMemory]]
) -> Iterator[str]:
    """What would fit where ``stages`` do not."""
    if keep and choose(stages, free):
        yield "it fits with networks loaded one at a time (keep=False)"
        return
    heavy = {stage.name for stage in stages if stage.weights > free}
    if "text_encoder" in heavy:
        yield "the text encoder can run on a larger GPU, with the same engine: reelquant embed there, and --embeddings here"
    if heavy - {"text_encoder"}:
        yield f"{' and '.join(sorted(heavy - {'text_encoder'}))} must have smaller weights: --precision fp8 or int8"
    for way, needs in ways.items():
        if all(stage.alone <= free for stage in needs if stage.name not in heavy):
            yield f"what {'also ' if heavy else ''}fits, by estimate: {way}"
            return
    if not heavy:
        yield "no smaller size fits either; use a bundle of a smaller precision, or a larger GPU"


def describe(stages: Sequence[StageMemory]) -> Iterator[str]:
    """A table for a person, and what both ways of running take."""
    yield f"{'stage':13} {'weights':>9} {'activations':>12} {'in and out':>11} {'caches':>9} {'alone':>9}"
    for stage in stages:
        numbers = (stage.weights, stage.activations, stage.tensors, stage.caches, stage.alone)
        row = (f"{_gb(number):>{width}}" for number, width in zip(numbers, (9, 12, 11, 9, 9), strict=True))
        yield f"{stage.name:13} {' '.join(row)}"
    largest = max(stages, key=lambda stage: stage.alone)
    yield f"kept loaded: {_gb(kept_bytes(stages))}; one stage at a time: {_gb(largest.alone)} ({largest.name})"


def _parts(stage: StageMemory) -> Iterator[str]:
    yield f"{_gb(stage.weights)} of weights"
    yield f"{_gb(stage.activations)} of activations"
    yield f"{_gb(stage.tensors)} in and out"
    if stage.caches:
        yield f"{_gb(stage.caches)} of caches"


def _short(stage: StageMemory) -> str:
    return f"{stage.name} {_gb(stage.alone)}"


def _gb(number: int) -> str:
    return f"{number / 1e9:.2f} GB"
