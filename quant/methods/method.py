"""How a recipe's numerics are reached: balancing, rounding and the observer of activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reelquant.quant.methods.observers import OBSERVERS
from reelquant.runtime.errors import BadInput

ROUNDINGS = ("nearest", "gptq")


@dataclass(frozen=True)
class Method:
    """``strength`` of channel balancing, 0…1, or None for none; ``shift`` centres channels; ``rounding`` of weights;
    ``observer`` of activations that are not balanced, and of attentions.
    """

    strength: float | None = None
    shift: bool = False
    rounding: str = "nearest"
    observer: str = "minmax"

    @property
    def balances(self) -> bool:
        """Whether activations are changed before they are quantized."""
        return self.strength is not None or self.shift

    def needs_channels(self, weight_only: bool) -> bool:
        """Whether the ranges must have statistics of every channel."""
        return self.rounding == "gptq" or (self.balances and not weight_only)

    @classmethod
    def parse(cls, table: Any, where: str) -> Method:
        """From a recipe's ``method = { … }``.

        Raises:
            BadInput: a key or a value that is not allowed.
        """
        if not isinstance(table, dict):
            raise BadInput(f"{where}: method is not a table with keys of {', '.join(cls.__dataclass_fields__)}")
        for key, value in table.items():
            if key not in cls.__dataclass_fields__:
                known = ", ".join(cls.__dataclass_fields__)
                raise BadInput(f"{where}: unknown key {key!r} in method; the keys are {known}")
            if key == "strength":
                check_strength(value, where)
            elif key == "shift" and not isinstance(value, bool):
                raise BadInput(f"{where}: shift must be true or false")
            elif (allowed := {"rounding": ROUNDINGS, "observer": OBSERVERS}.get(key)) and value not in allowed:
                raise BadInput(f"{where}: unknown {key} {value!r}; one of {', '.join(allowed)}")
        return cls(**table)


def check_strength(value: Any, where: str) -> None:
    """Raises:
    BadInput: not a number of 0…1.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise BadInput(f"{where}: strength must be a number from 0 to 1")


PLAIN = Method()
