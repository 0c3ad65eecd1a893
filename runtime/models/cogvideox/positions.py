"""What a transformer is told of its tokens' places: rotary tables, and positions added to the embedded tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.errors import BadInput, BundleError
from reelquant.runtime.models.cogvideox.rope import check_grid, rotary_tables

Table = NDArray[np.float32]
LEARNED = "positions.npy"


def position_inputs(
    config: Mapping[str, Any], text_tokens: int, shape: tuple[int, ...], learned: Path | None = None
) -> dict[str, Table]:
    """The graph's inputs for latents of ``shape`` [latent_frames, channels, h, w], those that this variant has.

    ``rotary_cos`` and ``rotary_sin``, float32 [text_tokens + video_tokens, attention_head_dim], do not turn the text;
    ``positions``, float32 [text_tokens + video_tokens, width], adds nothing to it. ``config`` is the transformer's
    config.json; ``learned`` the file of learned positions, for the one variant that has them.

    Raises:
        BadInput: a size that the variant has no positions for.
        BundleError: the config lacks a field.
    """
    frames, _, height, width = shape
    inputs: dict[str, Table] = {}
    if config.get("use_rotary_positional_embeddings"):
        cos, sin = rotary_tables(config, frames, height, width)
        still = (text_tokens, cos.shape[1])
        inputs["rotary_cos"] = np.concatenate([np.ones(still, np.float32), cos])
        inputs["rotary_sin"] = np.concatenate([np.zeros(still, np.float32), sin])
    if adds_positions(config):
        inputs["positions"] = _added(config, text_tokens, (frames, height, width), learned)
    return inputs


def check_positions(config: Mapping[str, Any], height: int, width: int) -> None:
    """Hold latents of ``height`` × ``width`` against the positions that a transformer has, before any work is done.

    Raises:
        BadInput: it has none for that size; the message says which it has.
    """
    high, wide = (config.get(f"sample_{side}") for side in ("height", "width"))
    if config.get("use_learned_positional_embeddings") and (height, width) != (high, wide):
        raise BadInput(
            f"this model learned positions for latents of {high}x{wide} alone, and not for {height}x{width}: "
            "make the clip at its own size, and crop or scale it afterwards"
        )
    check_grid(config, height, width)


def adds_positions(config: Mapping[str, Any]) -> bool:
    """Whether positions are added to the tokens: CogVideoX-2b (computed) and CogVideoX-5b-I2V (learned)."""
    return not config.get("use_rotary_positional_embeddings") or bool(config.get("use_learned_positional_embeddings"))


def _added(config: Mapping[str, Any], text_tokens: int, size: tuple[int, int, int], learned: Path | None) -> Table:
    try:
        trained = (
            (int(config["sample_frames"]) - 1) // int(config["temporal_compression_ratio"]) + 1,
            int(config["sample_height"]),
            int(config["sample_width"]),
        )
        dim = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
        patch = int(config["patch_size"])
        scales = float(config["temporal_interpolation_scale"]), float(config["spatial_interpolation_scale"])
    except KeyError as error:
        raise BundleError(
            f"the transformer's config.json has no {error.args[0]}; export the checkpoint again"
        ) from None
    if config.get("use_learned_positional_embeddings"):
        check_positions(config, *size[1:])
        if size == trained and learned is not None:
            return np.asarray(np.load(learned, mmap_mode="r"))
    # Off the trained number of frames the pipelines compute what they else would have learned.
    video = sincos_positions(dim, (size[0], size[1] // patch, size[2] // patch), *scales)
    return np.concatenate([np.zeros((text_tokens, dim), np.float32), video])


def sincos_positions(dim: int, grid: tuple[int, int, int], temporal_scale: float, spatial_scale: float) -> Table:
    """float32 [frames · rows · columns, dim]: sines and cosines of frame (a quarter of them), column and row.

    get_3d_sincos_pos_embed in diffusers' models/embeddings.py, which puts the column before the row.
    """
    frames, rows, columns = grid
    time = _sincos(np.arange(frames) / np.float32(temporal_scale), dim // 4)[:, None, None]
    down = _sincos(np.arange(rows) / np.float32(spatial_scale), dim // 8 * 3)[None, :, None]
    across = _sincos(np.arange(columns) / np.float32(spatial_scale), dim // 8 * 3)[None, None]
    parts = [np.broadcast_to(part, (*grid, part.shape[-1])) for part in (time, across, down)]
    return np.concatenate(parts, axis=-1).reshape(-1, dim)


def _sincos(positions: NDArray[Any], dim: int) -> Table:
    """float32 [positions, dim], all sines before all cosines; angles in float64, as get_1d_sincos_pos_embed has it."""
    omega = 1 / 10000 ** (np.arange(dim // 2, dtype=np.float64) / (dim / 2))
    angles = np.multiply.outer(positions.astype(np.float32).astype(np.float64), omega)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
