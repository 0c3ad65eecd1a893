"""Decode and encode in spatial tiles: memory is that of one tile, whatever the frame's size and the clip's length.

Each tile is a stream of its own over the whole clip. Tiles overlap and are blended linearly, above before left, as
``AutoencoderKLCogVideoX.tiled_decode`` and ``tiled_encode`` in diffusers do; what is decoded waits in temporary files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.errors import BundleError

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


def tilings(vae: Mapping[str, Any], scale: int, half: str = "decoder") -> tuple[Tiling, Tiling]:
    """The tiling of rows and of columns for a VAE's config, of its ``decoder`` or its ``encoder``.

    Raises:
        BundleError: the bundle was made before these were kept.
    """
    sides = (vae.get("sample_height"), vae.get("sample_width"))
    if not all(sides):
        raise BundleError("this bundle does not say the VAE's sample_height and sample_width; export it again")
    make = Tiling.of if half == "decoder" else Tiling.of_encoder
    rows, columns = (make(int(side or 0), overlap, scale) for side, overlap in zip(sides, _OVERLAP, strict=True))
    return rows, columns


def tile_count(latents: Floats, tiling: tuple[Tiling, Tiling]) -> int:
    """How many tiles latents [latent_frames, channels, h, w] are decoded in."""
    rows, columns = (len(range(0, side, axis.stride)) for side, axis in zip(latents.shape[2:], tiling, strict=True))
    return rows * columns


def decode_tiled(
    decode: DecodeStream,
    latents: Floats,
    tiling: tuple[Tiling, Tiling],
    scale: int,
    advance: Callable[[], None] = lambda: None,
) -> Iterator[Floats]:
    """Yield chunks float32 [1, 3, frames, height, width], after all tiles are decoded.

    ``decode`` makes such chunks of latents [latent_frames, channels, h, w]; ``scale`` is pixels per latent cell;
    ``advance`` is called after every chunk of every tile.
    """
    rows, columns = tiling
    height, width = (side * scale for side in latents.shape[2:])
    with tempfile.TemporaryDirectory(prefix="reelquant-tiles-") as scratch:
        store = _Store(Path(scratch))
        whole: Floats | None = None
        lengths: list[int] = []
        above: dict[int, Floats] = {}
        for i, top in enumerate(range(0, latents.shape[2], rows.stride)):
            below: dict[int, Floats] = {}
            left: Floats | None = None
            for j, start in enumerate(range(0, latents.shape[3], columns.stride)):
                part = latents[:, :, top : top + rows.tile, start : start + columns.tile]
                bottom = right = None
                done, lengths = 0, []
                for chunk in decode(np.ascontiguousarray(part)):
                    tile = chunk[0]
                    frames = slice(done, done + tile.shape[1])
                    if whole is None:
                        total = (len(latents) - 3) // 2 * 8 + 9
                        whole = store.array((3, total, height, width))
                    if bottom is None or right is None:
                        bottom = store.array((3, whole.shape[1], min(rows.blend, tile.shape[2]), tile.shape[3]))
                        right = store.array((3, whole.shape[1], tile.shape[2], min(columns.blend, tile.shape[3])))
                    if i:
                        _blend(above[j][:, frames], tile, axis=2)
                    if left is not None:
                        _blend(left[:, frames], tile, axis=3)
                    bottom[:, frames] = tile[:, :, tile.shape[2] - bottom.shape[2] :]
                    right[:, frames] = tile[:, :, :, tile.shape[3] - right.shape[3] :]
                    kept = tile[:, :, : rows.kept, : columns.kept]
                    y, x = i * rows.kept, j * columns.kept
                    whole[:, frames, y : y + kept.shape[2], x : x + kept.shape[3]] = kept
                    lengths.append(tile.shape[1])
                    done = frames.stop
                    advance()
                assert bottom is not None
                below[j], left = bottom, right
            above = below
        assert whole is not None
        done = 0
        for length in lengths:
            yield np.array(whole[None, :, done : done + length])
            done += length


def encode_tiled(encode: Callable[[Floats], Floats], frames: Floats, tiling: tuple[Tiling, Tiling]) -> Floats:
    """Moments float32 [1, 2·channels, latent_frames, h, w] of frames [1, 3, frames, height, width], tile by tile.

    ``encode`` makes the moments of one tile.
    """
    rows, columns = tiling
    lines: list[Floats] = []
    above: list[Floats] = []
    for top in range(0, frames.shape[3], rows.stride):
        line: list[Floats] = []
        for j, start in enumerate(range(0, frames.shape[4], columns.stride)):
            part = frames[:, :, :, top : top + rows.tile, start : start + columns.tile]
            tile = encode(np.ascontiguousarray(part))[0]
            if above:
                _blend(above[j][:, :, max(above[j].shape[2] - rows.blend, 0) :], tile, axis=2)
            if line:
                _blend(line[-1][:, :, :, max(line[-1].shape[3] - columns.blend, 0) :], tile, axis=3)
            line.append(tile)
        lines.append(np.concatenate([tile[:, :, : rows.kept, : columns.kept] for tile in line], axis=3))
        above = line
    return np.concatenate(lines, axis=2)[None]


def _blend(before: Floats, tile: Floats, axis: int) -> None:
    """Fade ``before``'s last rows (or columns) into ``tile``'s first ones, in place."""
    extent = min(before.shape[axis], tile.shape[axis])
    weight = (np.arange(extent) / extent).astype(np.float32).reshape(-1, *([1] * (3 - axis)))
    ends = [slice(None)] * axis
    a = before[(*ends, slice(before.shape[axis] - extent, None))]
    b = tile[(*ends, slice(0, extent))]
    b[...] = a * (1 - weight) + b * weight


class _Store:
    """Arrays in temporary files, deleted with their folder: pages that memory is short of can go to disk."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0

    def array(self, shape: tuple[int, ...]) -> Floats:
        self._count += 1
        return np.memmap(self._folder / f"{self._count}.f32", np.float32, "w+", shape=shape)
