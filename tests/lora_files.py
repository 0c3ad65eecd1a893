"""LoRA files with random factors, in every form of names that is read, and what they add to a weight by the formula."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

Floats = NDArray[np.float32]
Pairs = Mapping[str, tuple[Floats, Floats]]  # module → down [rank, in, …], up [out, rank, …]

# How each form calls a module's factors.
FORMS = {
    "diffusers": ("transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight"),
    "bare": ("{}.lora_A.weight", "{}.lora_B.weight"),
    "older diffusers": ("transformer.{}.lora.down.weight", "transformer.{}.lora.up.weight"),
    "dotted kohya": ("{}.lora_down.weight", "{}.lora_up.weight"),
    "kohya": ("lora_unet_{}.lora_down.weight", "lora_unet_{}.lora_up.weight"),
    "kohya's other prefix": ("lora_transformer_{}.lora_down.weight", "lora_transformer_{}.lora_up.weight"),
}


def random_pairs(shapes: Mapping[str, tuple[int, ...]], modules: Sequence[str], rank: int, seed: int = 0) -> Pairs:
    """Factors for ``modules``, whose weights have ``shapes``; together they change a weight by about a tenth."""
    rng = np.random.default_rng(seed)
    pairs = {}
    for module in modules:
        out, *rest = shapes[f"{module}.weight"]
        ones = (1,) * (len(rest) - 1)
        down = rng.standard_normal((rank, *rest), dtype=np.float32) / np.float32(np.prod(rest) ** 0.5)
        pairs[module] = down, np.float32(0.1) * rng.standard_normal((out, rank, *ones), dtype=np.float32)
    return pairs


def write_lora(
    path: Path,
    pairs: Pairs,
    form: str = "diffusers",
    alpha: float | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``path``. ``alpha`` is stored beside each pair, as kohya does; ``config`` in the metadata, as diffusers does."""
    tensors = {}
    for module, pair in pairs.items():
        name = module.replace(".", "_") if form.startswith("kohya") else module
        for key, factor in zip(FORMS[form], pair, strict=True):
            tensors[key.format(name)] = torch.from_numpy(factor)
        if alpha is not None:
            tensors[FORMS[form][0].format(name).partition(".lora_")[0] + ".alpha"] = torch.tensor(alpha)
    metadata = {"format": "pt"}
    if config is not None:
        metadata["lora_adapter_metadata"] = json.dumps({f"transformer.{key}": value for key, value in config.items()})
    save_file(tensors, path, metadata)
    return path


def added(pair: tuple[Floats, Floats], scale: float) -> Floats:
    """``scale · Σ_r up[·, r] down[r, …]``, in float64."""
    down, up = (each.astype(np.float64) for each in pair)
    made: Floats = (scale * np.einsum("or,r...->o...", up.reshape(len(up), -1), down)).astype(np.float32)
    return made
