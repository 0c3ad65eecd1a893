"""What each precision is worth on the CPU at hand, in words: does it save time, memory, or neither?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reelquant.runtime.bundle.manifest import Manifest

REDUCED, WEIGHT_ONLY = "int8-reduced", "weight-only"
EMULATED = "costs time: it is emulated, to judge its quality"


@dataclass(frozen=True)
class Note:
    """``faster`` is whether a step takes less time than in fp32 on the same engine; ``text`` says what is saved."""

    precision: str
    faster: bool
    text: str

    @property
    def disappoints(self) -> bool:
        """Whether a user would take it for fast, and it is not."""
        return not self.faster and self.precision in ("int8", "fp8")


def cpu_notes(multiplies_int8: bool, saved: str, reduced_is_faster: bool = False) -> tuple[Note, ...]:
    """What each precision is worth on an engine that computes on this CPU; the measurements are in docs/benchmarks.md.

    Where it does not multiply bytes, INT8 saves what ``saved`` says, and ``reduced_is_faster`` is of INT8 with 7-bit weights.
    """
    if multiplies_int8:
        text = "saves time and memory: this CPU multiplies bytes"
        int8 = Note("int8", True, text), Note(REDUCED, True, f"{text}; int8 is closer to fp32 and as fast")
    else:
        exact = Note("int8", False, f"saves {saved}: without VNNI it is computed in float to stay exact")
        int8 = exact, _REDUCED_FASTER if reduced_is_faster else _REDUCED_SMALLER
    return (
        Note("fp32", False, "what the others are measured against"),
        Note("fp16", False, "saves disk, not time: it is computed in fp32"),
        *int8,
        Note(WEIGHT_ONLY, False, "saves memory, not time: int8-weight and int4-weight are computed in float"),
        Note("fp8", False, EMULATED),
    )


_REDUCED_FASTER = Note(REDUCED, True, "saves time and memory: its 7-bit weights are exact in this CPU's INT8 kernels")
_REDUCED_SMALLER = Note(
    REDUCED, False, "saves memory, not time: it is exact in this CPU's INT8 kernels, which are as fast as fp32"
)


def note_of(manifest: Manifest, notes: Sequence[Note]) -> Note | None:
    """What the transformer's precision is worth, of an engine's ``notes``; None where only a measurement could say."""
    if not notes:
        return None
    part = manifest.components["transformer"]
    known = {note.precision: note for note in notes}
    names = [_NOTED.get(name, name.replace("_", "-")) for name in part.formats]
    computed = [name for name in names if name != WEIGHT_ONLY]
    for name in (*computed, *names, part.compute):
        return known.get(name, Note(name, False, EMULATED))
    return None


# Numerics whose note is called otherwise.
_NOTED = {"fp8_per_channel": "fp8", "int8_weight": WEIGHT_ONLY, "int4_weight": WEIGHT_ONLY, "fp8_weight": WEIGHT_ONLY}
