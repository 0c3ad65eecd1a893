"""What a recipe says of the components beside the transformer, a section each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from reelquant.runtime.errors import BadInput

TEXT_ENCODER, VAE_DECODER = "text_encoder", "vae_decoder"
ALWAYS, FASTER = "always", "faster"
# What a component's section can name. The text encoder is stored in fewer bits, and computes in its own precision.
NUMERICS_OF = {
    TEXT_ENCODER: ("high", "bf16_weight", "int8_weight"),
    VAE_DECODER: ("high", "int8"),
    "vae_encoder": ("high",),
}
STORAGE = {"high": "fp32", "bf16_weight": "bf16", "int8_weight": "int8"}


@dataclass(frozen=True)
class Section:
    """``when`` is "always", or "faster": where the engine gains time by it and what is lost keeps its limit, else not. ``bf16`` says
    that what is not quantized of it is computed in bf16 where the CPU has units for that.
    """

    numerics: str = "high"
    when: str = ALWAYS
    bf16: bool = False

    def takes_effect(self, faster: bool) -> bool:
        """``faster``: whether the engine gains time by these numerics on this machine."""
        return self.numerics != "high" and (self.when == ALWAYS or faster)

    def as_toml(self) -> dict[str, str | bool]:
        """As :func:`parse_sections` reads it."""
        return {
            key: value for key, value in asdict(self).items() if (key, value) not in (("when", ALWAYS), ("bf16", False))
        }


def parse_sections(table: dict[str, Any], where: str) -> dict[str, Section]:
    """Take the sections out of a recipe's ``table``.

    Raises:
        BadInput: a key or a value that is not allowed.
    """
    found = {}
    for component, allowed in NUMERICS_OF.items():
        if component not in table:
            continue
        entry = table.pop(component)
        keys = ("numerics", "when", "bf16") if component == VAE_DECODER else ("numerics",)
        if not isinstance(entry, Mapping) or not set(entry) <= set(keys) or "numerics" not in entry:
            raise BadInput(f"{where}: {component} must be a table with {', '.join(keys)}")
        if entry["numerics"] not in allowed:
            raise BadInput(f"{where}: {component} cannot be {entry['numerics']!r}; one of {', '.join(allowed)}")
        if entry.get("when", ALWAYS) not in (ALWAYS, FASTER):
            raise BadInput(f"{where}: unknown when {entry['when']!r} of {component}; one of {ALWAYS}, {FASTER}")
        if not isinstance(entry.get("bf16", False), bool):
            raise BadInput(f"{where}: bf16 of {component} must be true or false")
        if entry.get("bf16") and entry["numerics"] == "high":
            raise BadInput(
                f'{where}: bf16 of {component} stands beside numerics = "int8"; name these, or leave bf16 out'
            )
        found[component] = Section(**entry)
    return found
