"""What each network of a bundle will need: bytes on disk, bytes in memory on an engine, FLOPs.

Weights are counted from the checkpoint's headers and the recipe, and activations by running the networks without data
(:mod:`reelquant.export.footprint`). What engines make of both was measured (``python -m benchmarks.memory``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from reelquant.export.checkpoint import Checkpoint
from reelquant.export.footprint import Footprint, text_footprint, transformer_footprint, vae_footprint
from reelquant.export.weights import Stored, open_weights
from reelquant.quant.calibration.channels import blocks_of
from reelquant.quant.calibration.plan import CalibrationPlan
from reelquant.quant.graph.convolutions import is_quantized
from reelquant.quant.numerics import HIGH, High
from reelquant.quant.passes.store_weights import LEAST_TABLE
from reelquant.quant.recipe import Recipe
from reelquant.quant.sections import VAE_DECODER
from reelquant.runtime.engines.memory import EngineMemory, MemoryModel
from reelquant.runtime.engines.registry import get_engine
from reelquant.runtime.errors import BadInput
from reelquant.runtime.machine.cards import Card
from reelquant.runtime.sizes import Size

Formats = Mapping[str, float]
_ITEM = {"fp32": 4, "fp16": 2, "bf16": 2}  # bytes of a value


@dataclass(frozen=True)
class Requirements:
    """Of one network, in bytes: ``disk`` of its files, ``weights`` and ``activations`` in memory while it runs; on a device also the
    ``caches`` of a stream, which elsewhere are among those. ``formats`` are the clip's FLOPs by what multiplies them, ``runs`` how often
    weights are read for it.
    """

    parameters: int
    disk: int
    weights: int
    activations: int
    formats: Mapping[str, float]
    runs: int
    caches: int = 0

    @property
    def memory(self) -> int:
        return self.weights + self.activations + self.caches

    @property
    def flops(self) -> float:
        """Of one clip."""
        return sum(self.formats.values())

    def seconds(self, card: Card) -> float | None:
        """The least that a card can take: for all that it multiplies, or to read the weights as often as it runs, whichever is more. None where
        it does not multiply in one of the formats.
        """
        products = [card.seconds(name, flops, 0) for name, flops in self.formats.items()]
        known = [each for each in products if each is not None]
        return max(sum(known), self.runs * self.disk / card.bandwidth) if len(known) == len(products) else None


def engine_memory(engine: str) -> EngineMemory:
    """Raises:
    BadInput: nobody has measured what graphs take on this engine.
    """
    found = get_engine(engine)
    memory = found.memory or found.device_memory
    if memory is None:
        raise BadInput(f"what graphs take of memory on {engine} is not known here; plan for another engine")
    return memory


def component_needs(
    checkpoint: Checkpoint,
    size: Size,
    engine: str,
    recipe: Recipe | None = None,
    text_weights: str = "fp32",
    batch: int = 2,
    steps: int = 50,
    tiled: bool = False,
    base: str = "fp32",
) -> dict[str, Requirements]:
    """Needs by component. FLOPs are of one clip of ``steps`` steps, ``batch`` 2 where it is guided. ``base`` is what all that is not quantized
    computes in; what a CPU holds of weights in 16 bit is counted as if they were float32, which no engine exceeds.
    """
    memory = engine_memory(engine)
    at_once, item = 1 if memory.on_device else batch, _ITEM[base]
    wide = 1.0 if memory.on_device else 4 / item
    live = item / 2 if memory.on_device else 1.0  # its models are of 16 bit
    configs = {name: checkpoint.config(name) for name in ("transformer", "text_encoder", "vae")}
    stored = {name: open_weights(checkpoint.path / name) for name in configs}
    shape = checkpoint.geometry.sampled_shape(size)

    text = text_footprint(configs["text_encoder"], checkpoint.text_tokens)
    step = transformer_footprint(configs["transformer"], checkpoint.text_tokens, shape, at_once)
    height, width, tiles = size.height, size.width, 1
    if tiled:
        rows, columns = checkpoint.model.tilings()
        tiles = math.ceil(shape[2] / rows.stride) * math.ceil(shape[3] / columns.stride)
        height, width = (
            min(side, axis.tile * checkpoint.geometry.spatial) for side, axis in ((height, rows), (width, columns))
        )
    decoder = vae_footprint(configs["vae"], "decoder", height, width)
    later = (checkpoint.geometry.latent_frames(size) - 3) // 2

    def need(
        weights: Mapping[str, Stored], disk: int, held: MemoryModel, footprint: Footprint, formats: Formats, runs: int
    ) -> Requirements:
        parameters = sum(math.prod(value.shape) for value in weights.values())
        taken = held.memory(int(wide * disk), int(live * footprint.live), footprint.scores)
        # On a device a stream's caches are there twice.
        caches = 2 * footprint.caches * item // 4 if memory.on_device else 0
        return Requirements(parameters, disk, *taken, formats, runs, caches)

    def in_vae(footprint: Footprint) -> Footprint:
        return replace(footprint, live=int(memory.tiles * footprint.live)) if tiled else footprint

    halves = {
        half: {name: value for name, value in stored["vae"].items() if name.startswith(f"{half}.")}
        for half in ("encoder", "decoder")
    }
    needs = {
        "text_encoder": need(
            stored["text_encoder"],
            _text_bytes(stored["text_encoder"], text_weights, item),
            memory.quantized if text_weights == "int8" else memory.high,
            text,
            {"fp32" if base == "fp32" else "bf16": batch * text.flops},
            batch,
        ),
        "transformer": need(
            stored["transformer"],
            _transformer_bytes(stored["transformer"], recipe, item),
            memory.quantized if recipe else memory.high,
            step,
            _transformer_flops(step, steps * batch // at_once, recipe, base),
            steps * batch // at_once,
        ),
        "vae_decoder": need(
            halves["decoder"],
            # In INT8 it takes less, and a decoder that loses too much in INT8 stays in float32.
            _bytes(halves["decoder"], item),
            memory.vae["decoder"],
            in_vae(decoder["first"]),
            {base: tiles * (decoder["first"].flops + later * decoder["next"].flops)},
            tiles * (1 + later),
        ),
    }
    convolved = replace(needs["vae_decoder"], disk=_decoder_bytes(halves["decoder"], recipe, engine, base))
    needs["vae_decoder"] = convolved
    if checkpoint.task == "i2v":
        image = vae_footprint(configs["vae"], "encoder", height, width)["image"]
        encoder = halves["encoder"]
        formats = {base: tiles * image.flops}
        image = replace(in_vae(image), caches=0)  # nothing is fed to it again
        needs["vae_encoder"] = need(encoder, _bytes(encoder, item), memory.vae["encoder"], image, formats, tiles)
    return needs


def calibration_bytes(checkpoint: Checkpoint, size: Size) -> int:
    """Memory that calibrating on clips of ``size`` takes at least: the transformer in float32, half a block at a time."""
    config, shape = checkpoint.config("transformer"), checkpoint.geometry.sampled_shape(size)
    step = transformer_footprint(config, checkpoint.text_tokens, shape, 2)
    memory = engine_memory(CalibrationPlan.engine)
    _, activations = memory.high.memory(0, step.live, step.scores)
    # Moments are there twice: their sums, and those of one run, or what is written.
    return memory.process + largest_block(checkpoint) + activations + 2 * moments_bytes(checkpoint)


def bundle_bytes(
    checkpoint: Checkpoint, recipe: Recipe | None, text_weights: str, engine: str, base: str = "fp32"
) -> int:
    """Of all weights of a bundle for ``engine``; its graphs and its tokenizer are a few MB more."""
    item = _ITEM[base]
    stored = {name: open_weights(checkpoint.path / name) for name in ("transformer", "text_encoder", "vae")}
    decoder = {name: value for name, value in stored["vae"].items() if name.startswith("decoder.")}
    positions = stored["transformer"].get("patch_embed.pos_embedding")
    return (
        _text_bytes(stored["text_encoder"], text_weights, item)
        + _transformer_bytes(stored["transformer"], recipe, item)
        + _bytes(stored["vae"], item)
        - _bytes(decoder, item)
        + _decoder_bytes(decoder, recipe, engine, base)
        + (4 * math.prod(positions.shape) if positions else 0)
    )


def largest_block(checkpoint: Checkpoint) -> int:
    """Bytes in float32 of the largest block of any network: what tracing and its parity check hold."""
    sums: dict[tuple[str, str], int] = {}
    for folder in ("transformer", "text_encoder"):
        for name, value in open_weights(checkpoint.path / folder).items():
            block = next((part for part in name.split(".") if part.isdigit()), "-" + name)
            sums[folder, block] = sums.get((folder, block), 0) + 4 * math.prod(value.shape)
    return max(sums.values())


def _bytes(weights: Mapping[str, Stored], item: int) -> int:
    return sum(item * math.prod(value.shape) for value in weights.values())


def _transformer_flops(step: Footprint, runs: int, recipe: Recipe | None, base: str) -> Formats:
    """By what a block in the middle multiplies in, its linears and its attention."""

    def format_of(node: str) -> str:
        numerics = recipe.resolve(f"transformer_blocks.1.{node}") if recipe else HIGH
        if isinstance(numerics, High) or numerics.weight_only:
            return base
        return numerics.format.name.removesuffix("_reduced")

    found: dict[str, float] = {}
    for node, flops in (("attn1.to_q", step.flops - step.attention), ("attn1", step.attention)):
        found[format_of(node)] = found.get(format_of(node), 0.0) + runs * flops
    return found


def _decoder_bytes(weights: Mapping[str, Stored], recipe: Recipe | None, engine: str, base: str) -> int:
    """In INT8 where the recipe asks for that on ``engine`` and all else is in float32: a byte a value of each filter, and a scale a channel."""
    faster = get_engine(engine).fast_int8_convolutions()
    if recipe is None or base != "fp32" or not recipe.section(VAE_DECODER).takes_effect(faster):
        return _bytes(weights, _ITEM[base])
    total = 0
    for name, value in weights.items():
        shape = value.shape
        quantized = len(shape) >= 4 and is_quantized(name.removeprefix("decoder."), shape[2:])
        total += math.prod(shape) + 4 * shape[0] if quantized else 4 * math.prod(shape)
    return total


def _transformer_bytes(weights: Mapping[str, Stored], recipe: Recipe | None, item: int) -> int:
    recipe = recipe.for_blocks(weights) if recipe is not None else None
    total = 0
    for name, value in weights.items():
        if name == "patch_embed.pos_embedding":  # an input of the graph, in a file of its own
            continue
        matrix = name.removesuffix(".weight") if len(value.shape) == 2 else ""
        numerics = recipe.resolve(matrix) if recipe is not None and matrix else HIGH
        if isinstance(numerics, High):
            total += item * math.prod(value.shape)
            continue
        total += numerics.stored_bytes((value.shape[1], value.shape[0]))
        if recipe is not None and numerics.balances and recipe.method_of(matrix).balances:
            # A factor and a summand of each channel, once for to_q, to_k and to_v.
            total += 0 if matrix.endswith((".to_k", ".to_v")) else 2 * item * value.shape[1]
    return total


def moments_bytes(checkpoint: Checkpoint) -> int:
    """Of the second moments that calibration keeps of what linears read; everything else of ranges is a few MB."""
    total = 0
    for name, value in open_weights(checkpoint.path / "transformer").items():
        # to_q, to_k and to_v read the same.
        if len(value.shape) == 2 and not name.endswith(("to_k.weight", "to_v.weight")):
            total += 4 * value.shape[1] ** 2 // blocks_of(value.shape[1])
    return total


def _text_bytes(weights: Mapping[str, Stored], storage: str, item: int) -> int:
    total = 0
    for name, value in weights.items():
        if name == "encoder.embed_tokens.weight" and "shared.weight" in weights:
            continue  # the same table under a second name
        count = math.prod(value.shape)
        table = "embed_tokens" in name or name == "shared.weight"
        linear = len(value.shape) == 2 and not table and "relative_attention_bias" not in name
        if storage == "fp32" or not (linear or (table and count >= LEAST_TABLE)):
            total += item * count
        else:
            total += count * (1 if storage == "int8" and linear else 2)
    return total
