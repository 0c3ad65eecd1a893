"""What a LoRA's factors are multiplied with: alpha / rank, alpha being a tensor beside them, or said by the file's metadata."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reelquant.export.lora_keys import AGAIN, PREFIX
from reelquant.export.weights import Stored
from reelquant.runtime.errors import BadInput

_METADATA = "lora_adapter_metadata"  # where diffusers keeps PEFT's configuration, as JSON
_USUAL = 8.0  # alpha of a PEFT configuration that does not say it


@dataclass(frozen=True)
class AlphaSettings:
    """PEFT's configuration, as diffusers stores it in the file: alpha of all modules and of some, and how it is divided."""

    alpha: float | None = None
    patterns: Mapping[str, float] | None = None
    by_root: bool = False

    @classmethod
    def of(cls, path: Path, metadata: Mapping[str, str]) -> AlphaSettings:
        """Raises:
        BadInput: the file's metadata is not of this form, or of DoRA.
        """
        if _METADATA not in metadata:
            return cls()
        try:
            raw: dict[str, Any] = dict(json.loads(metadata[_METADATA]))
            if any(key.startswith(PREFIX) for key in raw):  # a pipeline's, with a part for each network
                raw = {key.removeprefix(PREFIX): value for key, value in raw.items() if key.startswith(PREFIX)}
            if raw.get("use_dora"):
                raise BadInput(f"{path}: its metadata says use_dora: DoRA, which is not supported; plain LoRA is")
            alpha = float(raw.get("lora_alpha", _USUAL))
            patterns = {str(key): float(value) for key, value in (raw.get("alpha_pattern") or {}).items()}
            for pattern in patterns:
                re.compile(pattern)
            if not all(map(math.isfinite, [alpha, *patterns.values()])):
                raise ValueError("an alpha is not finite")
            return cls(alpha, patterns, bool(raw.get("use_rslora")))
        except (ValueError, TypeError, AttributeError, RecursionError, re.error) as error:
            raise BadInput(f"{path}: cannot read its {_METADATA}: {error}; {AGAIN}") from error

    def share(self, module: str, rank: int, alpha: float | None) -> float:
        """``alpha / rank``. Alpha is the module's own tensor, or what the metadata says of it, or the rank, as in diffusers."""
        for pattern, each in (self.patterns or {}).items():
            if alpha is None and re.match(rf"(.*\.)?({pattern})$", module):  # PEFT's get_pattern_key
                alpha = each
        if alpha is None:
            alpha = float(rank) if self.alpha is None else self.alpha
        return alpha / (math.sqrt(rank) if self.by_root else rank)


def read_alpha(path: Path, stored: Stored | None) -> float | None:
    """The value of an alpha tensor.

    Raises:
        BadInput: it is not one finite number.
    """
    if stored is None:
        return None
    values = stored.read().reshape(-1)
    if len(values) != 1 or not math.isfinite(float(values[0])):
        raise BadInput(f"{path}: {stored.name} is not one finite number; {AGAIN}")
    return float(values[0])
