"""Which shapes an engine is built for: the symbols of a graph's inputs, and what a clip's size makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reelquant.runtime.bundle.manifest import Manifest
from reelquant.runtime.errors import BundleError
from reelquant.runtime.models import model_of
from reelquant.runtime.models.cogvideox.tiles import exceeds, tile_sides
from reelquant.runtime.sizes import Size
from reelquant.runtime.symbolic import evaluate

Symbols = Mapping[str, int]


@dataclass(frozen=True)
class Profile:
    """The least, the usual and the most that an engine's symbols are, such as ``{"height": 60, "width": 90}``.

    All three are the same for an engine of static shapes.
    """

    least: Symbols
    usual: Symbols
    most: Symbols

    @classmethod
    def static(cls, symbols: Symbols) -> Profile:
        return cls(symbols, symbols, symbols)

    @property
    def is_static(self) -> bool:
        return self.least == self.usual == self.most

    def as_json(self) -> dict[str, list[int]]:
        """Symbol → [least, usual, most]."""
        return {name: [self.least[name], self.usual[name], self.most[name]] for name in sorted(self.usual)}

    @classmethod
    def from_json(cls, raw: Mapping[str, Sequence[int]]) -> Profile:
        least, usual, most = ({name: int(values[i]) for name, values in raw.items()} for i in range(3))
        return cls(least, usual, most)


def profile(manifest: Manifest, component: str, size: Size, tiled: bool, least: Size | None = None) -> Profile:
    """What the symbols of a component's graphs are for clips of ``size``; with ``least``, for all from that up to it.

    The batch is always one: with guidance the transformer runs twice, which at video lengths takes the same time as a
    batch of two and half of the memory. ``tiled`` is of the VAE, whose tiles are smaller at the frame's edges.
    """
    if component.startswith("vae"):
        return _vae_profile(manifest, component.removeprefix("vae_"), size, tiled, least or size)
    usual = _symbols(manifest, component, size)
    return Profile(_symbols(manifest, component, least or size), usual, usual)


def _symbols(manifest: Manifest, component: str, size: Size) -> Symbols:
    if component == "text_encoder":
        return {"batch": 1}
    model = model_of(manifest)
    frames, _, height, width = model.geometry.sampled_shape(size)
    tokens = model.attention_tokens(size)
    return {"batch": 1, "latent_frames": frames, "height": height, "width": width, "tokens": tokens}


def _vae_profile(manifest: Manifest, half: str, size: Size, tiled: bool, least: Size) -> Profile:
    cell = manifest.geometry.spatial if half == "decoder" else 1
    sides, fewest = ((s.height // cell, s.width // cell) for s in (size, least))
    most = sides
    if tiled:
        axes = model_of(manifest).tilings(half)
        if exceeds(sides, axes):
            rows, columns = (tile_sides(side, axis) for side, axis in zip(sides, axes, strict=True))
            most = (max(rows), max(columns))
            fewest = (min(*rows, fewest[0]), min(*columns, fewest[1]))
    return Profile(*({"height": height, "width": width} for height, width in (fewest, most, most)))


def dimension(expression: str, symbols: Symbols) -> int:
    """The value of a graph's dimension, such as ``"height"``, ``"2*height"`` or ``"height//8"``.

    Raises:
        BundleError: it is no expression of ``symbols``.
    """
    found = evaluate(expression, symbols)
    if found is None:
        raise BundleError(
            f"the graph has a dimension {expression!r}, which none of {', '.join(symbols)} gives; export it again"
        )
    return found
