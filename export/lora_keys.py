"""The keys of a LoRA file → pairs of factors by module, in every form of names that is read; what is no such key is refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from reelquant.export.weights import Stored
from reelquant.runtime.errors import BadInput

Shapes = Mapping[str, tuple[int, ...]]
Pair = dict[str, Stored]  # by part; alpha may be missing

DOWN, UP, ALPHA = "A", "B", "alpha"
PREFIX = "transformer."
AGAIN = "download it again"
# How names end, and which part of a pair they are. Those of before PEFT called the output linear to_out, without its number.
_PARTS = {
    ".lora_A.weight": DOWN,
    ".lora_B.weight": UP,
    ".lora_down.weight": DOWN,
    ".lora_up.weight": UP,
    ".lora.down.weight": DOWN,
    ".lora.up.weight": UP,
    "_lora.down.weight": DOWN,
    "_lora.up.weight": UP,
    ".alpha": ALPHA,
}
_KOHYA = ("lora_unet_", "lora_transformer_")
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


def pairs_by_module(path: Path, tensors: Mapping[str, Stored], linears: Shapes) -> dict[str, Pair]:
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
    pairs: dict[str, Pair] = {}
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
    module = module.removeprefix(PREFIX).replace(".processor.", ".")
    return (f"{module}.0" if end.startswith("_lora") and f"{module}.0" in linears else module), part


def check_pair(path: Path, pair: Pair, module: str, shape: tuple[int, ...]) -> None:
    """Raises:
    BadInput: a part is missing, or does not fit the weight or the other part.
    """
    for part, other in ((DOWN, UP), (UP, DOWN)):
        if part not in pair:
            there = pair.get(other) or pair[ALPHA]
            raise BadInput(
                f"{path} has {there.name} without its {'down (A)' if part == DOWN else 'up (B)'} factor; {AGAIN}"
            )
    rank = pair[DOWN].shape[0] if pair[DOWN].shape else 0
    ones = (1,) * (len(shape) - 2)
    for part, wanted in ((DOWN, (rank, *shape[1:])), (UP, (shape[0], rank, *ones))):
        if pair[part].shape != wanted or not rank:
            raise BadInput(
                f"{path}: {pair[part].name} is {list(pair[part].shape)}, and {list(wanted)} is expected, since {module}.weight is "
                f"{list(shape)}; it is a LoRA of another model"
            )


def adds_to(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight is a linear's or a convolution's, which LoRA are made of."""
    return name.endswith(".weight") and len(shape) >= 2


def _some(names: Iterable[str]) -> str:
    """A list of names, shortened."""
    listed = sorted(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more
