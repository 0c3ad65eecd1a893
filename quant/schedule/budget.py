"""A budget for a schedule: ``psnr>=37``, or several limits, ``psnr>=37, fidelity>=-0.01``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reelquant.runtime.errors import BadInput

_SENSES = {"psnr": ">=", "psnr_p5": ">=", "rel_l2": "<=", "forwards": "<=", "fidelity": ">="}
_FORM = re.compile(r"\s*(\w+)\s*(<=|>=)\s*(-?[0-9]+(?:\.[0-9]*)?(?:e-?[0-9]+)?)\s*")
_EXAMPLES = "psnr>=37, psnr_p5>=35, rel_l2<=0.02, forwards<=0.4, fidelity>=-0.01"


@dataclass(frozen=True)
class Limit:
    """One number that a schedule must keep, over clips that it was not fitted on.

    "psnr" is dB, of frames to those of the same clips with every step computed, in the mean, and "psnr_p5" at the 5th percentile;
    "rel_l2" is of the final latents, in the mean; "forwards" the share of the forwards of the whole sampling; "fidelity" by how much the
    mean share of what prompts ask for and clips show may change.
    """

    kind: str
    value: float

    def __str__(self) -> str:
        return f"{self.kind}{_SENSES[self.kind]}{self.value:g}"

    def kept(self, measured: Mapping[str, Any]) -> bool:
        seen = measured["fidelity_change"] if self.kind == "fidelity" else measured[self.kind]
        return bool(seen >= self.value if _SENSES[self.kind] == ">=" else seen <= self.value)


@dataclass(frozen=True)
class Budget:
    """All of ``limits`` are kept, or the budget is not."""

    limits: tuple[Limit, ...]

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Raises:
        BadInput: a limit is not of this form, a kind has two, or a value that no schedule keeps or that each one keeps.
        """
        limits = tuple(_limit(part, text) for part in text.split(","))
        if len({limit.kind for limit in limits}) < len(limits):
            raise BadInput(f"budget {text!r} has two limits of one kind; give one of each")
        return cls(limits)

    def __str__(self) -> str:
        return ", ".join(map(str, self.limits))

    def __contains__(self, kind: str) -> bool:
        return any(limit.kind == kind for limit in self.limits)

    def only(self, kind: str) -> bool:
        """Whether it limits nothing else."""
        return {limit.kind for limit in self.limits} == {kind}

    @property
    def share(self) -> float:
        """The most forwards, as a share of the whole sampling's."""
        return next((limit.value for limit in self.limits if limit.kind == "forwards"), 1.0)

    def kept(self, measured: Mapping[str, Any]) -> bool:
        """Whether what was measured on held-out clips keeps every limit."""
        return all(limit.kept(measured) for limit in self.limits)


def _limit(part: str, text: str) -> Limit:
    found = _FORM.fullmatch(part)
    if found is None or found[2] != _SENSES.get(found[1]):
        raise BadInput(f"budget {text!r}: {part.strip()!r} is none of {_EXAMPLES}; several are joined by a comma")
    limit = Limit(found[1], float(found[3]))
    if limit.kind == "fidelity":
        if not -1 <= limit.value <= 0:
            raise BadInput(f"budget {text!r}: fidelity is how far it may fall, from -1 to 0, such as fidelity>=-0.01")
    elif limit.value <= 0 or (limit.kind == "forwards" and limit.value > 1):
        raise BadInput(f"budget {text!r}: {limit.kind} is above 0, and forwards are a share, at most 1")
    return limit
