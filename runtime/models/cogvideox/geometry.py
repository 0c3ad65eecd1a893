"""Pixels and frames ↔ latents ↔ tokens: CogVideoX's arithmetic of sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from reelquant.runtime.errors import BadInput
from reelquant.runtime.sizes import Size

_SHARES = (7 / 8, 3 / 4, 5 / 8, 1 / 2, 3 / 8, 1 / 4, 1 / 8)
Shape = tuple[int, int, int, int]


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

    def checked(self, size: Size) -> Size:
        """Return ``size`` when the model can make it.

        Raises:
            BadInput: it cannot; the message gives the rule and the nearest valid value.
        """
        step = self.pixel_step
        for name, value in (("height", size.height), ("width", size.width)):
            if value < step or value % step:
                raise BadInput(
                    f"{name} {value} is not a positive multiple of {step}; the nearest is {_near(value, step)}"
                )
        step, most = self.frame_step, self.max_frames
        nearest = min(1 + _near(size.frames - 1, step), most) if size.frames > 1 else 1 + step
        if size.frames != nearest:
            raise BadInput(f"{size.frames} frames is not {step}N+1 from {1 + step} to {most}; the nearest is {nearest}")
        return size

    def smaller(self, size: Size) -> Iterator[Size]:
        """Ever smaller sizes that the model can make: at each share of ``size`` fewer frames, then smaller frames too."""
        for share in _SHARES:
            count = int((size.frames - 1) * share) // self.frame_step * self.frame_step
            frames = 1 + max(count, self.frame_step)
            height, width = (
                max(1, round(side * share / self.pixel_step)) * self.pixel_step for side in (size.height, size.width)
            )
            yield Size(frames, size.height, size.width)
            yield Size(frames, height, width)

    def size_of(self, shape: tuple[int, ...]) -> Size:
        """Of the clip that latents of ``shape`` [latent_frames, channels, h, w] become."""
        frames, _, height, width = shape
        return Size((frames - 1) * self.temporal + 1, height * self.spatial, width * self.spatial)

    def latent_frames(self, size: Size) -> int:
        return (size.frames - 1) // self.temporal + 1

    def latent_shape(self, size: Size) -> Shape:
        """[latent_frames, channels, height, width] of one clip's latents."""
        return self.latent_frames(size), self.latent_channels, size.height // self.spatial, size.width // self.spatial

    def sampled_shape(self, size: Size) -> Shape:
        """The latents' shape with whole patches of frames, as the transformer takes them: what is more is cut off again."""
        frames, *rest = self.latent_shape(size)
        return (-(-frames // self.patch_t) * self.patch_t, rest[0], rest[1], rest[2])

    def video_tokens(self, size: Size) -> int:
        grid = (size.height // self.pixel_step) * (size.width // self.pixel_step)
        return self.sampled_shape(size)[0] // self.patch_t * grid


def _near(value: int, step: int) -> int:
    return max(step, step * ((2 * value + step) // (2 * step)))
