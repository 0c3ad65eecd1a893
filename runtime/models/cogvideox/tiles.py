"""Decode and encode in spatial tiles: memory is that of one tile, whatever the frame's size and the clip's length.

Each tile is a stream of its own over the whole clip. Tiles overlap and are blended linearly, above before left, as
``AutoencoderKLCogVideoX.tiled_decode`` and ``tiled_encode`` in diffusers do; what is decoded waits in temporary files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.errors import BundleError
from reelquant.runtime.files.atomic import scratch_folder

Floats = NDArray[np.float32]
DecodeStream = Callable[[Floats], Iterator[Floats]]
_OVERLAP = (1 / 6, 1 / 5)  # of a tile's height and width; diffusers' own


@dataclass(frozen=True)
class Tiling:
    """Along one axis: a tile and the way to the next one, in cells of what goes in (of the decoder latents, of the
    encoder pixels), and how many cells of what comes out are blended and kept.
    """

    tile: int
    stride: int
    blend: int
    kept: int

    @classmethod
    def of(cls, sample: int, overlap: float, scale: int) -> Tiling:
        """For a VAE whose ``sample_height`` or ``sample_width`` is ``sample``: tiles are half of it."""
        tile = max(sample // 2 // scale, 2)
        stride = max(int(tile * (1 - overlap)), 1)
        return cls(tile, stride, (tile - stride) * scale, stride * scale)

    @classmethod
    def of_encoder(cls, sample: int, overlap: float, scale: int) -> Tiling:
        """The same tiles for the way back."""
        tile = max(sample // 2, 2 * scale)
        stride = max(int(tile * (1 - overlap)), scale)
        return cls(tile, stride, tile // scale - stride // scale, stride // scale)


def tilings(
    sample_height: int | None, sample_width: int | None, scale: int, half: str = "decoder"
) -> tuple[Tiling, Tiling]:
    """The tiling of rows and of columns for a VAE of this size and this many pixels a cell, of its ``decoder`` or its
    ``encoder``.

    Raises:
        BundleError: the bundle was made before these were kept.
    """
    sides = (sample_height, sample_width)
    if not all(sides):
        raise BundleError("this bundle does not say the VAE's sample_height and sample_width; export it again")
    make = Tiling.of if half == "decoder" else Tiling.of_encoder
    rows, columns = (make(int(side or 0), overlap, scale) for side, overlap in zip(sides, _OVERLAP, strict=True))
    return rows, columns


def exceeds(sides: tuple[int, ...], tiling: tuple[Tiling, Tiling]) -> bool:
    """Whether height or width ``sides``, in the cells of what goes in, are more than one tile."""
    return any(side > axis.tile for side, axis in zip(sides, tiling, strict=True))


def tile_sides(side: int, axis: Tiling) -> list[int]:
    """The tiles' lengths along one axis of ``side`` cells; those at its end are shorter."""
    return [min(axis.tile, side - start) for start in range(0, side, axis.stride)]


def tile_count(latents: Floats, tiling: tuple[Tiling, Tiling]) -> int:
    """How many tiles latents [latent_frames, channels, h, w] are decoded in."""
    rows, columns = (len(tile_sides(side, axis)) for side, axis in zip(latents.shape[2:], tiling, strict=True))
    return rows * columns


def decode_tiled(
    decode: DecodeStream, latents: Floats, tiling: tuple[Tiling, Tiling], advance: Callable[[], None] = lambda: None
) -> Iterator[Floats]:
    """Yield chunks float32 [1, 3, frames, height, width], after all tiles are decoded.

    ``decode`` makes such chunks of latents [latent_frames, channels, h, w]; ``advance`` is called after every chunk of
    every tile.
    """
    with scratch_folder(Path(tempfile.gettempdir(), "clip"), "tiles") as folder:
        done: dict[tuple[int, int], int] = {}  # chunks of each tile
        for i, top in enumerate(range(0, latents.shape[2], tiling[0].stride)):
            for j, left in enumerate(range(0, latents.shape[3], tiling[1].stride)):
                part = latents[:, :, top : top + tiling[0].tile, left : left + tiling[1].tile]
                for number, chunk in enumerate(decode(np.ascontiguousarray(part))):
                    np.save(Path(folder, f"{i}.{j}.{number}.npy"), chunk)
                    done[i, j] = number + 1
                    advance()
        for number in range(done[0, 0]):
            tiles = (np.load(Path(folder, f"{i}.{j}.{number}.npy")) for i, j in done)
            yield _joined(tiles, max(j for _, j in done) + 1, tiling)


def encode_tiled(encode: Callable[[Floats], Floats], frames: Floats, tiling: tuple[Tiling, Tiling]) -> Floats:
    """Moments float32 [1, 2·channels, latent_frames, h, w] of frames [1, 3, frames, height, width], tile by tile.

    ``encode`` makes the moments of one tile.
    """
    lefts = range(0, frames.shape[4], tiling[1].stride)
    tiles = (
        encode(np.ascontiguousarray(frames[:, :, :, top : top + tiling[0].tile, left : left + tiling[1].tile]))
        for top in range(0, frames.shape[3], tiling[0].stride)
        for left in lefts
    )
    return _joined(tiles, len(lefts), tiling)


def _joined(tiles: Iterator[Floats], columns: int, tiling: tuple[Tiling, Tiling]) -> Floats:
    """One array [1, channels, frames, height, width] of tiles that come row by row, blended where they overlap."""
    rows: list[Floats] = []
    above: list[Floats] = []
    line: list[Floats] = []
    for tile in tiles:
        if above:
            _blend(above[len(line)], tile, 3, tiling[0].blend)
        if line:
            _blend(line[-1], tile, 4, tiling[1].blend)
        line.append(tile)
        if len(line) == columns:
            rows.append(np.concatenate([each[..., : tiling[0].kept, : tiling[1].kept] for each in line], axis=4))
            above, line = line, []
    return np.concatenate(rows, axis=3)


def _blend(before: Floats, tile: Floats, axis: int, extent: int) -> None:
    """Fade the last ``extent`` rows (or columns) of ``before`` into ``tile``'s first ones, in place."""
    extent = min(before.shape[axis], tile.shape[axis], extent)
    weight = (np.arange(extent) / extent).astype(np.float32).reshape(-1, *([1] * (4 - axis)))
    ends = [slice(None)] * axis
    a = before[(*ends, slice(before.shape[axis] - extent, None))]
    b = tile[(*ends, slice(0, extent))]
    b[...] = a * (1 - weight) + b * weight
