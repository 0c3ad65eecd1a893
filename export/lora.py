"""LoRA files of a transformer: found, checked against its linears, and merged into each weight as it is read.

What a file adds to a weight W [out, in] is ``scale · alpha / rank · B · A`` (https://arxiv.org/abs/2106.09685), A [rank, in] being
"down" and B [out, rank] "up"; of a convolution, A has the filter's own height and width, and B those of one pixel. Two forms of names
are read, diffusers' own (``transformer.transformer_blocks.0.attn1.to_q.lora_A.weight``) and kohya's, which has underscores for dots
(``lora_unet_transformer_blocks_0_attn1_to_q.lora_down.weight``); where its dots were, the network's own names say.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reelquant.export.weights import PICKLED, Finite, Stored, Weight, check_whole, read_safetensors
from reelquant.runtime.bundle import hash_file
from reelquant.runtime.errors import BadInput, BundleError

Shapes = Mapping[str, tuple[int, ...]]

_DOWN, _UP, _ALPHA = "A", "B", "alpha"
# How names end, and which part of a pair they are. Those of before PEFT called the output linear to_out, without its number.
_PARTS = {
    ".lora_A.weight": _DOWN,
    ".lora_B.weight": _UP,
    ".lora_down.weight": _DOWN,
    ".lora_up.weight": _UP,
    ".lora.down.weight": _DOWN,
    ".lora.up.weight": _UP,
    "_lora.down.weight": _DOWN,
    "_lora.up.weight": _UP,
    ".alpha": _ALPHA,
}
_PREFIX = "transformer."
_KOHYA = ("lora_unet_", "lora_transformer_")
_METADATA = "lora_adapter_metadata"  # where diffusers keeps PEFT's configuration, as JSON
_UNSUPPORTED = {
    r"dora_scale|lora_magnitude_vector": "DoRA",
    r"\.hada_|\.loha_": "LoHa",
    r"\.lokr_": "LoKr",
    r"\.lora_mid\.": "Tucker-decomposed LoRA (LoCon's)",
    r"\.lora_B\.bias$|\.lora_up\.bias$": "LoRA of biases",
    r"\.diff(_b)?$": "whole differences of weights",
}
_TEXT = ("text_encoder", "lora_te")
_SHOWN = 6  # names in one message
_AGAIN = "download it again"


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
            check_whole(path, _AGAIN)
            tensors, metadata = read_safetensors(path, f"give a .safetensors file, or {_AGAIN}")
        except BundleError as error:
            raise BadInput(str(error)) from error
        linears = {name.removesuffix(".weight"): shape for name, shape in weights.items() if _adds_to(name, shape)}
        pairs = _pairs(path, tensors, linears)
        settings = _Settings.of(path, metadata)
        factors = {}
        for module, pair in pairs.items():
            _check_pair(path, pair, module, linears[module])
            rank = pair[_DOWN].shape[0]
            share = settings.share(module, rank, _alpha(path, pair.get(_ALPHA)))
            factors[f"{module}.weight"] = Factors(Finite(pair[_DOWN]), Finite(pair[_UP]), scale * share)
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


def _adds_to(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight is a linear's or a convolution's, which LoRA are made of."""
    return name.endswith(".weight") and len(shape) >= 2


def _pairs(path: Path, tensors: Mapping[str, Stored], linears: Shapes) -> dict[str, dict[str, Stored]]:
    """The tensors by module and part.

    Raises:
        BadInput: a key is of a kind that is not supported, of a text encoder, of nothing here, or is there twice.
    """
    if not tensors:
        raise BadInput(f"{path} has no tensors; it is no LoRA")
    for kind, called in _UNSUPPORTED.items():
        if found := [key for key in tensors if re.search(kind, key)]:
            raise BadInput(f"{path} has {_some(found)}: {called}, which is not supported; plain LoRA is")
    if found := [key for key in tensors if key.startswith(_TEXT)]:
        raise BadInput(
            f"{path} has {_some(found)}: a LoRA of a text encoder, which CogVideoX's pipelines do not take; save the transformer's alone"
        )
    # Of two modules whose names differ in dots and underscores alone, neither could be told from the other.
    flat: dict[str, list[str]] = {}
    for module in linears:
        flat.setdefault(module.replace(".", "_"), []).append(module)
    pairs: dict[str, dict[str, Stored]] = {}
    unknown = []
    for key, tensor in tensors.items():
        module, part = _module_and_part(key, linears, flat)
        if not part or module not in linears:
            unknown.append(key)
        elif part in pairs.setdefault(module, {}):
            raise BadInput(
                f"{path} has {key} and {pairs[module][part].name}, which are of the same weight; keep one of them"
            )
        else:
            pairs[module][part] = tensor
    if unknown:
        raise BadInput(
            f"{path}: {len(unknown)} of {len(tensors)} keys match no linear of this checkpoint's transformer: {_some(unknown)}; "
            "it is a LoRA of another model, or of a form that is not read (diffusers' and kohya's are)"
        )
    return pairs


def _module_and_part(key: str, linears: Shapes, flat: Mapping[str, Sequence[str]]) -> tuple[str, str]:
    """Which module a key is of, and which part of its pair; "" where it has no such ending."""
    end = next((each for each in _PARTS if key.endswith(each)), "")
    module, part = key.removesuffix(end), _PARTS.get(end, "")
    for prefix in _KOHYA:
        named = flat.get(module.removeprefix(prefix), ()) if module.startswith(prefix) else ()
        if len(named) == 1:
            return named[0], part
    module = module.removeprefix(_PREFIX).replace(".processor.", ".")
    return (f"{module}.0" if end.startswith("_lora") and f"{module}.0" in linears else module), part


def _check_pair(path: Path, pair: Mapping[str, Stored], module: str, shape: tuple[int, ...]) -> None:
    """Raises:
    BadInput: a part is missing, or does not fit the weight or the other part.
    """
    for part, other in ((_DOWN, _UP), (_UP, _DOWN)):
        if part not in pair:
            there = pair.get(other) or pair[_ALPHA]
            raise BadInput(
                f"{path} has {there.name} without its {'down (A)' if part == _DOWN else 'up (B)'} factor; {_AGAIN}"
            )
    rank = pair[_DOWN].shape[0] if pair[_DOWN].shape else 0
    ones = (1,) * (len(shape) - 2)
    for part, wanted in ((_DOWN, (rank, *shape[1:])), (_UP, (shape[0], rank, *ones))):
        if pair[part].shape != wanted or not rank:
            raise BadInput(
                f"{path}: {pair[part].name} is {list(pair[part].shape)}, and {list(wanted)} is expected, since {module}.weight is "
                f"{list(shape)}; it is a LoRA of another model"
            )


def _alpha(path: Path, stored: Stored | None) -> float | None:
    """The value of an alpha tensor.

    Raises:
        BadInput: it is not one finite number.
    """
    if stored is None:
        return None
    values = stored.read().reshape(-1)
    if len(values) != 1 or not math.isfinite(float(values[0])):
        raise BadInput(f"{path}: {stored.name} is not one finite number; {_AGAIN}")
    return float(values[0])


@dataclass(frozen=True)
class _Settings:
    """PEFT's configuration, as diffusers stores it in the file: alpha of all modules and of some, and how it is divided."""

    alpha: float | None = None
    patterns: Mapping[str, float] | None = None
    by_root: bool = False

    @classmethod
    def of(cls, path: Path, metadata: Mapping[str, str]) -> _Settings:
        """Raises:
        BadInput: the file's metadata is not of this form, or of DoRA.
        """
        if _METADATA not in metadata:
            return cls()
        try:
            raw: dict[str, Any] = dict(json.loads(metadata[_METADATA]))
            if any(key.startswith(_PREFIX) for key in raw):  # a pipeline's, with a part for each network
                raw = {key.removeprefix(_PREFIX): value for key, value in raw.items() if key.startswith(_PREFIX)}
            if raw.get("use_dora"):
                raise BadInput(f"{path}: its metadata says use_dora: DoRA, which is not supported; plain LoRA is")
            alpha = raw.get("lora_alpha")
            patterns = {str(key): float(value) for key, value in (raw.get("alpha_pattern") or {}).items()}
            numbers = [] if alpha is None else [float(alpha)]
            if not all(map(math.isfinite, [*numbers, *patterns.values()])):
                raise ValueError("an alpha is not finite")
            return cls(numbers[0] if numbers else None, patterns, bool(raw.get("use_rslora")))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise BadInput(f"{path}: cannot read its {_METADATA}: {error}; {_AGAIN}") from error

    def share(self, module: str, rank: int, alpha: float | None) -> float:
        """``alpha / rank``. Alpha is the module's own tensor, or what the metadata says of it, or the rank, as in diffusers."""
        for name, each in (self.patterns or {}).items():
            # PEFT matches patterns at a name's end, or from its beginning where they start with ^.
            whole = name.startswith("^")
            if alpha is None and (module == name.lstrip("^") or not whole and module.endswith(f".{name}")):
                alpha = each
        if alpha is None:
            alpha = float(rank) if self.alpha is None else self.alpha
        return alpha / (math.sqrt(rank) if self.by_root else rank)


def _some(names: Iterable[str]) -> str:
    """A list of names, shortened."""
    listed = sorted(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more
