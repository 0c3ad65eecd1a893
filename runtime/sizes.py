"""Pixels and frames ↔ latents ↔ tokens: the one place that knows CogVideoX's arithmetic."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from reelquant.runtime.errors import BadInput

_SHARES = (7 / 8, 3 / 4, 5 / 8, 1 / 2, 3 / 8, 1 / 4, 1 / 8)


@dataclass(frozen=True)
class Geometry:
    """What of a checkpoint decides which sizes are valid; read from its configs, stored in the manifest.

    ``spatial`` is pixels per latent cell, ``temporal`` frames per latent frame, ``patch`` and ``patch_t`` latent cells
    per token (``patch_t`` is 1 unless the checkpoint is a 1.5).
    """

    spatial: int = 8
    temporal: int = 4
    patch: int = 2
    patch_t: int = 1
    latent_channels: int = 16
    max_frames: int = 49

    @property
    def pixel_step(self) -> int:
        """Height and width must be multiples of this: 16."""
        return self.spatial * self.patch

    @property
    def frame_step(self) -> int:
        """Frames must be one more than a multiple of this: 8, since the VAE's stream takes 2 latent frames at a time."""
        return 2 * self.temporal * self.patch_t


@dataclass(frozen=True)
class Size:
    """A clip's size in pixels, checked against a :class:`Geometry`."""

    frames: int
    height: int
    width: int

    @classmethod
    def of_latents(cls, shape: tuple[int, ...], geometry: Geometry) -> Size:
        """Of the clip that latents of ``shape`` [latent_frames, channels, h, w] become."""
        frames, _, height, width = shape
        return cls((frames - 1) * geometry.temporal + 1, height * geometry.spatial, width * geometry.spatial)

    def latent_frames(self, geometry: Geometry) -> int:
        return (self.frames - 1) // geometry.temporal + 1

    def latent_shape(self, geometry: Geometry, channels: int | None = None) -> tuple[int, int, int, int]:
        """[latent_frames, channels, height, width] of one clip's latents."""
        return (
            self.latent_frames(geometry),
            channels or geometry.latent_channels,
            self.height // geometry.spatial,
            self.width // geometry.spatial,
        )

    def sampled_shape(self, geometry: Geometry) -> tuple[int, int, int, int]:
        """The latents' shape with whole patches of frames, as the transformer takes them: what is more is cut off again."""
        frames, *rest = self.latent_shape(geometry)
        return (-(-frames // geometry.patch_t) * geometry.patch_t, rest[0], rest[1], rest[2])

    def video_tokens(self, geometry: Geometry) -> int:
        grid = (self.height // geometry.pixel_step) * (self.width // geometry.pixel_step)
        return -(-self.latent_frames(geometry) // geometry.patch_t) * grid


def checked(size: Size, geometry: Geometry) -> Size:
    """Return ``size`` when the model can make it.

    Raises:
        BadInput: it cannot; the message gives the rule and the nearest valid value.
    """
    step = geometry.pixel_step
    for name, value in (("height", size.height), ("width", size.width)):
        if value < step or value % step:
            raise BadInput(f"{name} {value} is not a positive multiple of {step}; the nearest is {_near(value, step)}")
    step, most = geometry.frame_step, geometry.max_frames
    nearest = min(1 + _near(size.frames - 1, step), most) if size.frames > 1 else 1 + step
    if size.frames != nearest:
        raise BadInput(f"{size.frames} frames is not {step}N+1 from {1 + step} to {most}; the nearest is {nearest}")
    return size


def smaller_sizes(size: Size, geometry: Geometry) -> Iterator[Size]:
    """Ever smaller sizes that the model can make: at each share of ``size`` fewer frames, then smaller frames too."""
    for share in _SHARES:
        count = int((size.frames - 1) * share) // geometry.frame_step * geometry.frame_step
        frames = 1 + max(count, geometry.frame_step)
        height, width = (
            max(1, round(side * share / geometry.pixel_step)) * geometry.pixel_step
            for side in (size.height, size.width)
        )
        yield Size(frames, size.height, size.width)
        yield Size(frames, height, width)


def parse_size(text: str) -> tuple[int, int]:
    """``"480x720"`` → (480, 720), height first.

    Raises:
        BadInput: the text is not HEIGHTxWIDTH.
    """
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text.strip().lower(), re.ASCII)
    if not found:
        raise BadInput(f"size {text[:40]!r} is not HEIGHTxWIDTH; write it like 480x720, height first")
    return int(found[1]), int(found[2])


def parse_clip(text: str) -> Size:
    """``"49x480x720"`` → 49 frames of 480×720, unchecked.

    Raises:
        BadInput: the text is not FRAMESxHEIGHTxWIDTH.
    """
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})x(\d{1,5})", text.strip().lower(), re.ASCII)
    if not found:
        raise BadInput(f"clip {text[:40]!r} is not FRAMESxHEIGHTxWIDTH; write it like 49x480x720")
    return Size(int(found[1]), int(found[2]), int(found[3]))


def _near(value: int, step: int) -> int:
    return max(step, step * ((2 * value + step) // (2 * step)))
