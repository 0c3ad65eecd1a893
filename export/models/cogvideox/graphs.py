"""The graphs of a bundle: which modules, which inputs, which axes are symbolic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reelquant.export.checkpoint import Checkpoint
from reelquant.export.models.cogvideox.modules import TextEncoder, Transformer, VaeDecoder, VaeEncoder
from reelquant.export.network import Network
from reelquant.export.text_weights import stored_as
from reelquant.export.trace import GraphSpec, Inputs, cache_output, call
from reelquant.runtime.models.cogvideox.positions import adds_positions

COMPONENTS = ("text_encoder", "transformer", "vae_encoder", "vae_decoder")
# Frames that each graph of the VAE's streams takes, in the order they run. A still image is a stream of one frame; a
# clip's first chunk has nine, as in diffusers.
DECODER_CHUNKS = {"first": 3, "next": 2}
ENCODER_CHUNKS = {"image": 1, "first": 9, "next": 8}
_CACHE_AXES = {3: "height", 4: "width"}


@dataclass(frozen=True)
class Sample:
    """The latent size that example inputs are made for."""

    batch: int
    latent_frames: int
    height: int
    width: int
    seed: int = 0


# Traced at the first, checked at the second too, which differs in every axis: nothing may have become a constant.
SAMPLES = (Sample(2, 5, 4, 6, seed=0), Sample(1, 3, 8, 4, seed=1))


@dataclass(frozen=True)
class Graph:
    """A graph to trace, and what makes its seeded inputs for a sample."""

    spec: GraphSpec
    samples: tuple[Inputs, ...]


def component_graphs(checkpoint: Checkpoint, component: str, text_weights: str = "fp32") -> Iterator[Graph]:
    """Load one component's network and yield its graphs, in the order in which a stream runs them."""
    if component == "text_encoder":
        yield _text_graph(stored_as(checkpoint.network("text_encoder"), text_weights), checkpoint.text_tokens)
    elif component == "transformer":
        yield _transformer_graph(checkpoint.network("transformer"), checkpoint.config("transformer"))
    elif component == "vae_decoder":
        yield from _stream(checkpoint.network("vae"), VaeDecoder, "latents", "frames", DECODER_CHUNKS)
    elif component == "vae_encoder":
        yield from _stream(checkpoint.network("vae"), VaeEncoder, "frames", "moments", ENCODER_CHUNKS)
    else:
        raise ValueError(f"unknown component {component!r}")


def _text_graph(network: Network, tokens: int) -> Graph:
    vocabulary = int(network.module.config.vocab_size)
    samples = tuple(
        {"input_ids": torch.randint(0, vocabulary, (sample.batch, tokens), generator=_generator(sample))}
        for sample in SAMPLES
    )
    axes = {"input_ids": {0: "batch"}}
    return Graph(GraphSpec("main", TextEncoder(network.module), network, axes, ("embeds",)), samples)


def _transformer_graph(network: Network, config: Mapping[str, Any]) -> Graph:
    samples = tuple(transformer_inputs(config, sample) for sample in SAMPLES)
    latent = {0: "batch", 1: "latent_frames", 3: "height", 4: "width"}
    tokens = {0: "tokens"}
    axes = {
        "latents": latent,
        "text": {0: "batch"},
        "timestep": {0: "batch"},
        "image_latents": latent,
        "rotary_cos": tokens,
        "rotary_sin": tokens,
        "positions": tokens,
    }
    return Graph(GraphSpec("main", Transformer(network.module), network, axes, ("velocity",)), samples)


def transformer_inputs(config: Mapping[str, Any], sample: Sample) -> dict[str, Tensor]:
    """Seeded inputs, those that the variant has, in the order of :class:`Transformer`'s arguments."""
    generator = _generator(sample)
    patch_t = config.get("patch_size_t") or 1
    frames = -(-sample.latent_frames // patch_t)
    shape = (sample.batch, frames * patch_t, config["out_channels"], sample.height, sample.width)
    text = (sample.batch, config["max_text_seq_length"], config["text_embed_dim"])
    grid = (sample.height // config["patch_size"]) * (sample.width // config["patch_size"])
    tokens = text[1] + frames * grid
    inputs = {
        "latents": torch.randn(shape, generator=generator),
        "text": torch.randn(text, generator=generator),
        "timestep": torch.randint(0, 1000, (sample.batch,), generator=generator),
    }
    if config["in_channels"] == 2 * config["out_channels"]:
        inputs["image_latents"] = torch.randn(shape, generator=generator)
    if config.get("ofs_embed_dim"):
        inputs["ofs"] = torch.rand(1, generator=generator) + 1
    if config.get("use_rotary_positional_embeddings"):
        angles = torch.rand(tokens, config["attention_head_dim"] // 2, generator=generator).repeat_interleave(2, 1)
        inputs |= {"rotary_cos": angles.cos(), "rotary_sin": angles.sin()}
    if adds_positions(config):
        width = config["num_attention_heads"] * config["attention_head_dim"]
        inputs["positions"] = torch.randn(tokens, width, generator=generator)
    return inputs


def _stream(
    network: Network, half: type[VaeDecoder | VaeEncoder], name: str, output: str, chunks: Mapping[str, int]
) -> Iterator[Graph]:
    """The graphs of one half of the VAE; ``next`` is sampled with the caches that the chunk before it returned."""
    vae: Any = network.module
    module = half(vae)
    channels = vae.config.latent_channels if half is VaeDecoder else vae.config.in_channels
    scale = 1 if half is VaeDecoder else 2 ** (len(vae.config.block_out_channels) - 1)
    caches: list[dict[str, Tensor]] = [{} for _ in SAMPLES]
    for graph, frames in chunks.items():
        if graph != "next":
            caches = [{} for _ in SAMPLES]
        samples = []
        for sample, cache in zip(SAMPLES, caches, strict=True):
            shape = (1, channels, frames, sample.height * scale, sample.width * scale)
            samples.append({name: torch.randn(shape, generator=_generator(sample)), **cache})
        caches = [
            {key.removeprefix("next_"): value for key, value in result.items() if key.startswith("next_cache.")}
            for result in (call(GraphSpec(graph, module, network, {}, (output,)), inputs) for inputs in samples)
        ]
        axes = {key: _CACHE_AXES for key in samples[0]}
        outputs = (output, *(cache_output(key) for key in caches[0]))
        yield Graph(GraphSpec(graph, module, network, axes, outputs), tuple(samples))


def _generator(sample: Sample) -> torch.Generator:
    return torch.Generator().manual_seed(sample.seed)
