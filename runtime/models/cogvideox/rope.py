"""3D rotary position tables, as diffusers' CogVideoX pipelines make them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.errors import BadInput, BundleError

Table = NDArray[np.float32]


def rotary_tables(
    config: Mapping[str, Any], latent_frames: int, latent_height: int, latent_width: int
) -> tuple[Table, Table]:
    """Return cos and sin, float32 [video_tokens, attention_head_dim], tokens in frame, row, column order.

    ``config`` is the transformer's config.json. CogVideoX 1.0 (``patch_size_t`` null) stretches the grid over the one
    it was trained on, 1.5 counts cells from its corner. A quarter of each head turns with time and three eighths each
    with row and column (get_3d_rotary_pos_embed in diffusers' models/embeddings.py).

    Raises:
        BadInput: the clip is larger than a 1.5 checkpoint has positions for.
        BundleError: the config lacks a field, or its heads cannot be split so.
    """
    try:
        head, patch = int(config["attention_head_dim"]), int(config["patch_size"])
        trained = int(config["sample_height"]) // patch, int(config["sample_width"]) // patch
    except KeyError as error:
        raise BundleError(
            f"the transformer's config.json has no {error.args[0]}; export the checkpoint again"
        ) from None
    if head % 16:
        raise BundleError(f"the transformer's config.json: attention_head_dim {head} is not a multiple of 16")
    grid = latent_height // patch, latent_width // patch
    patch_t = config.get("patch_size_t")
    if patch_t is None:
        frames = latent_frames
        rows, columns = _stretched(grid, trained)
    else:
        frames = -(-latent_frames // patch_t)
        rows, columns = (np.arange(cells, dtype=np.float32) for cells in grid)
        check_grid(config, latent_height, latent_width)

    shape = frames, *grid
    angles = np.concatenate(
        [
            np.broadcast_to(_angles(np.arange(frames), head // 4)[:, None, None], (*shape, head // 8)),
            np.broadcast_to(_angles(rows, head // 8 * 3)[None, :, None], (*shape, head // 16 * 3)),
            np.broadcast_to(_angles(columns, head // 8 * 3)[None, None], (*shape, head // 16 * 3)),
        ],
        axis=-1,
    ).reshape(-1, head // 2)
    return np.repeat(np.cos(angles), 2, axis=1), np.repeat(np.sin(angles), 2, axis=1)


def check_grid(config: Mapping[str, Any], latent_height: int, latent_width: int) -> None:
    """Hold latents against the grid that a 1.5 checkpoint counts in; 1.0 stretches its own over any.

    Raises:
        BadInput: they are larger.
    """
    most = int(config.get("sample_height") or 0), int(config.get("sample_width") or 0)
    if config.get("patch_size_t") and (latent_height > most[0] or latent_width > most[1]):
        raise BadInput(
            f"latents of {latent_height}x{latent_width} exceed this model's {most[0]}x{most[1]}; use a smaller size"
        )


def _stretched(grid: tuple[int, int], trained: tuple[int, int]) -> tuple[Table, Table]:
    """Place ``grid``'s rows and columns in the largest box of its shape, centred in the ``trained`` grid.

    The box is get_resize_crop_region_for_grid's in diffusers' pipeline_cogvideox.py.
    """
    (high, wide), (most_high, most_wide) = grid, trained
    if high / wide > most_high / most_wide:
        box = most_high, round(most_high / high * wide)
    else:
        box = round(most_wide / wide * high), most_wide
    top, left = round((most_high - box[0]) / 2), round((most_wide - box[1]) / 2)
    return (
        _linspace(top, (top + box[0]) * (high - 1) / high, high),
        _linspace(left, (left + box[1]) * (wide - 1) / wide, wide),
    )


def _linspace(start: float, end: float, count: int) -> Table:
    """``torch.linspace`` in float32, to the bit.

    It rounds the step to float32, counts from the nearer end, and fuses multiply and add. At positions of 40 and more
    np.linspace differs by up to 8e-6, and so then do the sines.
    """
    first, last = np.float32(start), np.float32(end)
    if count == 1:
        return np.array([first])
    step = np.float64((last - first) / np.float32(count - 1))
    i = np.arange(count)
    return np.where(i < count // 2, first + step * i, last - step * (count - 1 - i)).astype(np.float32)


def _angles(positions: NDArray[Any], dim: int) -> Table:
    """float32 [positions, dim / 2]; every product is rounded to float32, as get_1d_rotary_pos_embed has it."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    # A power in float64, then rounded: numpy's own float32 power is off by a bit on some machines.
    frequencies = 1 / np.power(10000.0, exponents.astype(np.float64)).astype(np.float32)
    angles: Table = np.multiply.outer(positions.astype(np.float32), frequencies)
    return angles
