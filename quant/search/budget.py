"""A budget for a quantized transformer: ``rel_l2<=0.02``, ``size<=900MB`` or ``seconds<=1.5``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from reelquant.runtime.errors import BadInput

_FORM = re.compile(r"\s*(rel_l2|size|seconds)\s*<=\s*([0-9.]+(?:e-?[0-9]+)?)\s*([kKMG]?B)?\s*")
_UNITS = {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9}


@dataclass(frozen=True)
class Budget:
    """``kind`` is "rel_l2" (of the velocity, teacher-forced), "size" (bytes of the transformer's weights) or "seconds" (of
    one guided step at the bundle's size, on the engine at hand).
    """

    kind: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Raises:
        BadInput: not of this form, or not above zero.
        """
        found = _FORM.fullmatch(text)
        try:
            limit = float(found[2]) * _UNITS[found[3] or "B"] if found else 0.0
        except ValueError:
            limit = 0.0
        if found is None or limit <= 0 or (found[3] and found[1] != "size"):
            raise BadInput(f"budget {text!r} is none of: rel_l2<=0.02, size<=900MB (B, kB, MB, GB), seconds<=1.5")
        return cls(found[1], limit)

    def __str__(self) -> str:
        return f"{self.kind}<={self.said(self.limit)}"

    def said(self, amount: float) -> str:
        """An amount of this kind, as a person reads it."""
        return f"{amount / 1e6:.6g}MB" if self.kind == "size" else f"{amount:.6g}"
