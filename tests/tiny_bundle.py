"""Bundles of a few kilobytes with real graphs: whole commands run on them in milliseconds, on either engine."""

from __future__ import annotations

from itertools import starmap
from pathlib import Path

import numpy as np
import onnx_ir as ir

from demo.architecture import SCHEDULER, TEXT_TOKENS, build_tokenizer
from reelquant.quant.graph.graph_files import save_graphs
from reelquant.quant.graph.graph_stats import graph_stats
from reelquant.runtime.bundle import TOKENIZER, Bundle, list_files, write_manifest
from reelquant.runtime.bundle.manifest import Component, Defaults, Manifest
from reelquant.runtime.models.cogvideox.geometry import Geometry

RECIPE = 'name = "tiny"\ndescription = "for tests"\nrules = [{ match = "transformer_blocks.0.*", numerics = "int8" }]\n'

_TEXT_ENCODER = """main (int64[batch, tokens] input_ids) => (float[batch, tokens, width] embeds) <WEIGHTS> {
 embeds = Gather(table, input_ids)
}"""
_TRANSFORMER = """main (
 float[batch, frames, 4, height, width] latents, IMAGE float[batch, tokens, 16] text,
 int64[batch] timestep, float[all, 16] rotary_cos, float[all, 16] rotary_sin
) => (float[batch, frames, 4, height, width] velocity)
<WEIGHTS, int64[2] axes = {1, 2}, int64[5] shape = {-1, 1, 1, 1, 1}, float[1] half = {0.5}> {
 ["transformer_blocks.0.attn1.to_q"] asked = MatMul(text, to_q)
 mean = ReduceMean(asked, axes)
 wish = Reshape(mean, shape)
 wished = Add(latents, wish)
 all = Sum(wished MORE)
 velocity = Mul(all, half)
}"""
_DECODER = """NAME (float[1, 4, FRAMES, height, width] latents CACHE)
 => (float[1, 3, frames, high, wide] frames, float[1, 4, 1, 1, 1] "next_cache.mean")
<WEIGHTS, float[5] scales = {1, 1, FACTOR, 8, 8}, int64[3] axes = {2, 3, 4}> {
 "next_cache.mean" = ReduceMean(latents, axes)
 all = Sum(latents MORE)
 rgb = Conv(all, to_rgb)
 frames = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">(rgb, , scales)
}"""
_ENCODER = """image (float[1, 3, 1, high, wide] frames) => (float[1, 8, 1, height, width] moments) <WEIGHTS> {
 small = AveragePool<kernel_shape = [1, 8, 8], strides = [1, 8, 8]>(frames)
 moments = Conv(small, to_moments)
}"""


def make_tiny_bundle(path: Path, task: str = "t2v") -> Bundle:
    """Write an fp32 bundle to ``path``: 9 frames of 32x32 in 4 steps, and one linear, transformer_blocks.0.attn1.to_q."""
    words = {"IMAGE": "", "MORE": ""}
    if task == "i2v":
        words = {"IMAGE": "float[batch, frames, 4, height, width] image_latents,", "MORE": ", image_latents"}
    first = {"NAME": "first", "FRAMES": "3", "FACTOR": "3", "CACHE": "", "MORE": ""}
    later = {"NAME": "next", "FRAMES": "2", "FACTOR": "4", "CACHE": ', float[1, 4, 1, 1, 1] "cache.mean"'}
    later["MORE"] = ', "cache.mean"'
    graphs = {
        "text_encoder": {"main": _graph(_TEXT_ENCODER, {}, table=(build_tokenizer().get_vocab_size(), 16))},
        "transformer": {"main": _graph(_TRANSFORMER, words, to_q=(16, 16))},
        "vae_decoder": {kind["NAME"]: _graph(_DECODER, kind, to_rgb=(3, 4, 1, 1, 1)) for kind in (first, later)},
        "vae_encoder": {"image": _graph(_ENCODER, {}, to_moments=(8, 3, 1, 1, 1))},
    }
    components = {
        name: Component(save_graphs(path / name, models), stats={graph: graph_stats(m) for graph, m in models.items()})
        for name, models in graphs.items()
    }
    build_tokenizer().save(str(path / TOKENIZER))
    manifest = Manifest(
        task=task,
        precision="fp32",
        defaults=Defaults(frames=9, height=32, width=32, steps=4),
        geometry=Geometry(latent_channels=4),
        text_tokens=TEXT_TOKENS,
        transformer={
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "patch_size": 2,
            "sample_height": 4,
            "sample_width": 4,
            "text_embed_dim": 16,
            "use_rotary_positional_embeddings": True,
        },
        vae={"scaling_factor": 0.7},
        scheduler={"_class_name": "CogVideoXDDIMScheduler", "num_train_timesteps": 1000, **SCHEDULER},
        components=components,
        source={"checkpoint": "tiny", "files": {}},
        tools={},
        files=list_files(path),
    )
    write_manifest(path, manifest)
    return Bundle.open(path)


def _graph(text: str, words: dict[str, str], **weights: tuple[int, ...]) -> ir.Model:
    for word, value in {**words, "WEIGHTS": ", ".join(starmap(_weight, weights.items()))}.items():
        text = text.replace(word, value)
    return ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 21]>\n{text}')


def _weight(name: str, shape: tuple[int, ...]) -> str:
    values = np.random.default_rng(len(shape)).normal(0, 0.4, shape)
    return f"float{list(shape)} {name} = {{{', '.join(f'{value:.4f}' for value in values.flat)}}}"
