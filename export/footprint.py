"""What one run of a network asks for, found by running it at its real size without data: FLOPs, and bytes in use.

Fake tensors have shapes and no storage, so a 5-billion-parameter forward at 17,776 tokens is walked in seconds.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from reelquant.export.checkpoint import build_network
from reelquant.export.models.cogvideox.graphs import DECODER_CHUNKS, ENCODER_CHUNKS, Sample, transformer_inputs
from reelquant.export.models.cogvideox.modules import (
    RotaryAttention,
    TextEncoder,
    Transformer,
    VaeDecoder,
    VaeEncoder,
    plain_convolutions,
)
from reelquant.export.network import fake_mode

Config = Mapping[str, Any]
Asked = ParamSpec("Asked")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Footprint:
    """Of one run in float32. ``live``: the most bytes that its results hold at once, computed one operation at a time;
    ``scores``: bytes of one layer's attention scores, which are not in ``live``; ``caches``: of the causal caches that
    it returns, which are; ``attention``: of the FLOPs, those of attentions' products.
    """

    flops: float
    live: int
    scores: int = 0
    caches: int = 0
    attention: float = 0.0


def _once(function: Callable[Asked, Found]) -> Callable[Asked, Found]:
    """Remember what ``function`` found for equal arguments: looking for a plan that fits asks for the same again and again."""
    known: dict[str, Found] = {}

    @wraps(function)
    def asked(*args: Asked.args, **kwargs: Asked.kwargs) -> Found:
        key = json.dumps([args, kwargs], sort_keys=True)
        if key not in known:
            known[key] = function(*args, **kwargs)
        return known[key]

    return asked


@_once
def transformer_footprint(config: Config, text_tokens: int, shape: tuple[int, ...], batch: int) -> Footprint:
    """Of one step on ``batch`` latents of ``shape`` [latent_frames, channels, h, w]."""
    frames, _, height, width = shape
    heads, depth = config["num_attention_heads"], config["attention_head_dim"]
    patch = config["patch_size"]
    tokens = frames // (config.get("patch_size_t") or 1) * (height // patch) * (width // patch) + text_tokens
    with fake_mode(), torch.no_grad():
        inputs = transformer_inputs(config, Sample(batch, frames, height, width))
        flops, live = _by_depth(config, partial(_transformer, config), inputs)
    attention = 4.0 * batch * tokens**2 * heads * depth * config["num_layers"]
    return Footprint(flops + attention, live, scores=4 * batch * heads * tokens**2, attention=attention)


@_once
def text_footprint(config: Config, text_tokens: int) -> Footprint:
    """Of one prompt; T5's attention over a few hundred tokens is small, and counted as it is."""
    with fake_mode(), torch.no_grad():
        inputs = {"input_ids": torch.empty(1, text_tokens, dtype=torch.int64)}
        flops, live = _by_depth(
            config, lambda layers: TextEncoder(build_network("text_encoder", {**config, **layers})), inputs
        )
    return Footprint(flops, live)


@_once
def vae_footprint(config: Config, half: str, height: int, width: int) -> Mapping[str, Footprint]:
    """Of each graph of the ``decoder`` or ``encoder`` at a frame of ``height`` × ``width`` pixels, by its name."""
    with plain_convolutions(), fake_mode(), torch.no_grad():
        network = build_network("vae", config)
        if half == "decoder":
            scale = 2 ** (len(config["block_out_channels"]) - 1)
            module: nn.Module = VaeDecoder(network)
            shape, lengths = (config["latent_channels"], height // scale, width // scale), DECODER_CHUNKS
        else:
            module, shape, lengths = VaeEncoder(network), (3, height, width), ENCODER_CHUNKS
        found: dict[str, Footprint] = {}
        caches = None
        for graph, frames in lengths.items():
            x = torch.empty(1, shape[0], frames, *shape[1:])
            earlier = caches if graph == "next" else None
            flops, live, (_, caches) = _run(
                module, {"latents" if half == "decoder" else "frames": x, "caches": earlier}
            )
            held = sum(4 * cache.numel() for cache in caches.values())
            found[graph] = Footprint(flops, live + (held if earlier else 0), caches=held)
    return found


def _transformer(config: Config, layers: Config) -> nn.Module:
    module = Transformer(build_network("transformer", {**config, **layers}))
    module.transformer.set_attn_processor(_NoScores())
    return module


def _by_depth(config: Config, make: Callable[[Config], nn.Module], inputs: Mapping[str, Any]) -> tuple[float, int]:
    """FLOPs and live bytes at the config's depth, from one layer and two: every further one does what the second did."""
    one, two = (_run(make({"num_layers": count}), inputs) for count in (1, 2))
    return one[0] + (config["num_layers"] - 1) * (two[0] - one[0]), max(one[1], two[1])


class _NoScores(RotaryAttention):
    """Attention as a fused kernel does it, without scores in memory."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.empty_like(query)


class _Live(TorchDispatchMode):
    """Adds up the storages that results still hold, and keeps the highest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._held: dict[int, list[int]] = {}  # storage → how many tensors hold it, bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {_storage(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        for value in tree_leaves(made):
            if isinstance(value, Tensor) and ((key := _storage(value)) in self._held or key not in given):
                entry = self._held.setdefault(key, [0, value.untyped_storage().nbytes()])
                self._now += 0 if entry[0] else entry[1]
                entry[0] += 1
                weakref.finalize(value, self._drop, key)
        self.peak = max(self.peak, self._now)
        return made

    def _drop(self, key: int) -> None:
        entry = self._held[key]
        entry[0] -= 1
        if not entry[0]:
            self._now -= self._held.pop(key)[1]


def _storage(value: Tensor) -> int:
    return int(value.untyped_storage()._cdata)


def _run(module: nn.Module, inputs: Mapping[str, Any]) -> tuple[float, int, Any]:
    live, counter = _Live(), FlopCounterMode(display=False)
    with counter, live:
        result = module.eval()(**inputs)
    return float(counter.get_total_flops()), live.peak, result
