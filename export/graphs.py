"""The graphs of a bundle: which modules, which inputs, which axes are symbolic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reelquant.export.checkpoint import Checkpoint
from reelquant.export.modules import ImageTransformer, TextEncoder, Transformer, VaeStream
from reelquant.export.trace import GraphSpec, Inputs, cache_output, call

COMPONENTS = ("text_encoder", "transformer", "vae_encoder", "vae_decoder")
_CACHE_AXES = {3: "height", 4: "width"}


@dataclass(frozen=True)
class Sample:
    """The latent size that example inputs are made for."""

    batch: int
    latent_frames: int
    height: int
    width: int
    seed: int = 0


# Traced at the first, checked at both: nothing of the one may have become a constant of the graph.
SAMPLES = (Sample(2, 5, 4, 6, seed=0), Sample(1, 3, 8, 6, seed=1))


@dataclass(frozen=True)
class Graph:
    """A graph to trace, and what makes its seeded inputs for a sample."""

    spec: GraphSpec
    samples: tuple[Inputs, ...]


def component_graphs(checkpoint: Checkpoint, component: str) -> Iterator[Graph]:
    """Load one component's network and yield its graphs, in the order in which a stream runs them."""
    if component == "text_encoder":
        yield _text_graph(checkpoint.load("text_encoder"), checkpoint.text_tokens)
    elif component == "transformer":
        yield _transformer_graph(checkpoint.load("transformer"), checkpoint.config("transformer"))
    elif component == "vae_decoder":
        vae = checkpoint.load("vae")
        yield from _stream(vae, "decoder", "latents", "frames", {"first": 3, "next": 2})
    elif component == "vae_encoder":
        vae = checkpoint.load("vae")
        # A still image is a stream of one frame; a clip's first chunk has nine, as in diffusers.
        yield from _stream(vae, "encoder", "frames", "moments", {"image": 1, "first": 9, "next": 8})
    else:
        raise ValueError(f"unknown component {component!r}")


def _text_graph(encoder: nn.Module, tokens: int) -> Graph:
    vocabulary = int(encoder.config.vocab_size)
    samples = tuple(
        {"input_ids": torch.randint(0, vocabulary, (sample.batch, tokens), generator=_generator(sample))}
        for sample in SAMPLES
    )
    return Graph(GraphSpec("main", TextEncoder(encoder), {"input_ids": {0: "batch"}}, ("embeds",)), samples)


def _transformer_graph(transformer: nn.Module, config: Mapping[str, Any]) -> Graph:
    image = config["in_channels"] == 2 * config["out_channels"]
    module = (ImageTransformer if image else Transformer)(transformer)
    latent = {0: "batch", 1: "latent_frames", 3: "height", 4: "width"}
    axes = {
        "latents": latent,
        **({"image_latents": latent} if image else {}),
        "text": {0: "batch"},
        "timestep": {0: "batch"},
        "rotary_cos": {0: "tokens"},
        "rotary_sin": {0: "tokens"},
    }
    samples = []
    for sample in SAMPLES:
        generator = _generator(sample)
        shape = (sample.batch, sample.latent_frames, config["out_channels"], sample.height, sample.width)
        text = (sample.batch, config["max_text_seq_length"], config["text_embed_dim"])
        grid = (sample.height // config["patch_size"]) * (sample.width // config["patch_size"])
        tokens = text[1] + sample.latent_frames * grid
        angles = torch.rand(tokens, config["attention_head_dim"] // 2, generator=generator).repeat_interleave(2, 1)
        inputs = {
            "latents": torch.randn(shape, generator=generator),
            **({"image_latents": torch.randn(shape, generator=generator)} if image else {}),
            "text": torch.randn(text, generator=generator),
            "timestep": torch.randint(0, 1000, (sample.batch,), generator=generator),
            "rotary_cos": angles.cos(),
            "rotary_sin": angles.sin(),
        }
        samples.append(inputs)
    return Graph(GraphSpec("main", module, axes, ("velocity",)), tuple(samples))


def _stream(vae: Any, half: str, name: str, output: str, chunks: Mapping[str, int]) -> Iterator[Graph]:
    """The graphs of one half of the VAE; ``next`` is sampled with the caches that the chunk before it returned."""
    module = VaeStream(vae, half)
    channels = vae.config.latent_channels if half == "decoder" else vae.config.in_channels
    scale = 1 if half == "decoder" else 2 ** (len(vae.config.block_out_channels) - 1)
    caches: list[dict[str, Tensor]] = [{} for _ in SAMPLES]
    for graph, frames in chunks.items():
        if graph != "next":
            caches = [{} for _ in SAMPLES]
        samples = []
        for sample, cache in zip(SAMPLES, caches, strict=True):
            shape = (1, channels, frames, sample.height * scale, sample.width * scale)
            samples.append({name: torch.randn(shape, generator=_generator(sample)), **cache})
        results = [call(module, inputs) for inputs in samples]
        caches = [
            {key.removeprefix("next_"): value for key, value in result.items() if key.startswith("next_cache.")}
            for result in results
        ]
        axes = {key: _CACHE_AXES for key in samples[0]}
        outputs = (output, *(cache_output(key) for key in caches[0]))
        yield Graph(GraphSpec(graph, module, axes, outputs), tuple(samples))


def _generator(sample: Sample) -> torch.Generator:
    return torch.Generator().manual_seed(sample.seed)
