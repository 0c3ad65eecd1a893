"""LoRA files of a transformer: found, checked against its linears, and merged into each weight as it is read.

What a file adds to a weight W [out, in] is ``scale · alpha / rank · B · A`` (https://arxiv.org/abs/2106.09685), A [rank, in] being
"down" and B [out, rank] "up"; of a convolution, A has the filter's own height and width, and B those of one pixel. Two forms of names
are read, diffusers' own (``transformer.transformer_blocks.0.attn1.to_q.lora_A.weight``) and kohya's, which has underscores for dots
(``lora_unet_transformer_blocks_0_attn1_to_q.lora_down.weight``); where its dots were, the network's own names say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reelquant.export.lora_alpha import AlphaSettings, read_alpha
from reelquant.export.lora_keys import AGAIN, ALPHA, DOWN, UP, Shapes, adds_to, check_pair, pairs_by_module
from reelquant.export.weights import PICKLED, Finite, Weight, check_whole, read_safetensors
from reelquant.runtime.bundle import hash_file
from reelquant.runtime.errors import BadInput, BundleError


@dataclass(frozen=True)
class Factors:
    """What one file adds to one weight."""

    down: Weight
    up: Weight
    scale: float

    def add_to(self, values: NDArray[np.float32]) -> None:
        """Add it to ``values``, in place, so that nothing of their size is there twice."""
        up, down = (torch.from_numpy(each.read()).flatten(1) for each in (self.up, self.down))
        torch.from_numpy(values).view(len(up), -1).addmm_(up, down, alpha=self.scale)


@dataclass(frozen=True)
class Merged:
    """A weight with what LoRA add to it."""

    weight: Weight
    added: Sequence[Factors]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    def read(self) -> NDArray[np.float32]:
        """As the weight's.

        Raises:
            BundleError: a value is NaN or infinite, of the weight or of a factor.
        """
        values = self.weight.read()
        for each in self.added:
            each.add_to(values)
        return values


@dataclass(frozen=True)
class Lora:
    """A checked file: ``factors`` by the names of the weights that they are added to."""

    path: Path
    scale: float
    factors: Mapping[str, Factors]

    @classmethod
    def open(cls, text: str, weights: Shapes) -> Lora:
        """Read and check what ``--lora`` says, ``FILE`` or ``FILE:SCALE``, against the shapes of a transformer's ``weights``.

        Only headers and a few numbers are read; the factors are when they are merged.

        Raises:
            BadInput: there is no such file, it is no LoRA of this transformer, or of a kind that is not supported.
        """
        path, scale = _file_and_scale(text)
        if path.suffix.lower() in PICKLED:
            raise BadInput(
                f"{path} is a pickle, and loading a pickle can run any code; use the LoRA's .safetensors file, or save it as one"
            )
        try:
            check_whole(path, AGAIN)
            tensors, metadata = read_safetensors(path, f"give a .safetensors file, or {AGAIN}")
        except BundleError as error:
            raise BadInput(str(error)) from error
        linears = {name.removesuffix(".weight"): shape for name, shape in weights.items() if adds_to(name, shape)}
        pairs = pairs_by_module(path, tensors, linears)
        settings = AlphaSettings.of(path, metadata)
        factors = {}
        for module, pair in pairs.items():
            check_pair(path, pair, module, linears[module])
            rank = pair[DOWN].shape[0]
            share = settings.share(module, rank, read_alpha(path, pair.get(ALPHA)))
            factors[f"{module}.weight"] = Factors(Finite(pair[DOWN]), Finite(pair[UP]), scale * share)
        return cls(path, scale, factors)

    @cached_property
    def record(self) -> dict[str, Any]:
        """What a bundle's manifest says of it."""
        return {"file": self.path.name, "sha256": hash_file(self.path), "scale": self.scale}


def merged(weights: Mapping[str, Weight], loras: Sequence[Lora]) -> dict[str, Weight]:
    """The weights of a transformer with what ``loras`` add to them, all of them together."""
    made: dict[str, Weight] = dict(weights)
    for name, weight in weights.items():
        if added := [lora.factors[name] for lora in loras if name in lora.factors]:
            made[name] = Merged(weight, added)
    return made


def _file_and_scale(text: str) -> tuple[Path, float]:
    """``FILE`` or ``FILE:SCALE``: a colon may also be a part of the file's path, as after the letter of a Windows drive."""
    head, colon, tail = text.rpartition(":")
    if colon and Path(head).is_file():
        try:
            scale = float(tail)
        except ValueError:
            if Path(text).is_file():
                return Path(text), 1.0
            raise BadInput(
                f"--lora {text}: the scale {tail!r} is not a number; write FILE or FILE:SCALE, such as {head}:0.8"
            ) from None
        if not math.isfinite(scale):
            raise BadInput(f"--lora {text}: the scale {tail} is not finite; 1 is usual, and the default")
        return Path(head), scale
    path = Path(text)
    if path.is_dir():
        raise BadInput(f"--lora {text} is a folder; name the .safetensors file in it")
    if not path.is_file():
        raise BadInput(f"--lora {text}: there is no such file; write FILE.safetensors or FILE.safetensors:SCALE")
    return path, 1.0
