"""The stages of a clip: which network each is, which of its graphs run, and how often."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from reelquant.runtime.models.cogvideox.family import CogVideoX
from reelquant.runtime.models.cogvideox.tiles import exceeds, tile_sides
from reelquant.runtime.sizes import Size

IMAGE, VIDEO = "image", "video"  # what a clip may start from


@dataclass(frozen=True)
class Stage:
    """One network of a clip; ``runs`` is how often each of its graphs runs, a row of a batch at a time."""

    component: str
    runs: Mapping[str, int]


def clip_stages(
    model: CogVideoX, size: Size, prompts: int = 2, forwards: int = 0, tiled: bool = False, source: str | None = None
) -> tuple[Stage, ...]:
    """Of a clip of ``size``, in the order in which they run.

    ``prompts`` are those to encode, 0 where their embeddings were kept; ``forwards`` the transformer's, each half of guidance counted;
    ``source`` is "image" or "video" where the clip starts from one.
    """
    later = (model.geometry.latent_frames(size) - 3) // 2
    found = [Stage("text_encoder", {"main": prompts})] if prompts else []
    if source is not None:
        tiles = _tiles(model, "encoder", size, tiled)
        runs = {"image": tiles} if source == IMAGE else _stream(tiles, later)
        found.append(Stage("vae_encoder", runs))
    tiles = _tiles(model, "decoder", size, tiled)
    return (*found, Stage("transformer", {"main": forwards}), Stage("vae_decoder", _stream(tiles, later)))


def _stream(tiles: int, later: int) -> dict[str, int]:
    return {"first": tiles} | ({"next": tiles * later} if later else {})


def _tiles(model: CogVideoX, half: str, size: Size, tiled: bool) -> int:
    cell = model.geometry.spatial if half == "decoder" else 1
    sides = (size.height // cell, size.width // cell)
    if not tiled or not exceeds(sides, axes := model.tilings(half)):
        return 1
    return math.prod(len(tile_sides(side, axis)) for side, axis in zip(sides, axes, strict=True))
