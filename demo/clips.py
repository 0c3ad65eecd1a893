"""Captioned clips, rendered procedurally and read back.

A clip shows one coloured shape that moves in one direction over a plain background; in every eighth clip it moves
past a second, small, still shape of another colour. Because every attribute can be measured from pixels again
(:mod:`demo.reader`), a caption is a question with a known answer, and "does the model still do what the prompt says
after quantization?" becomes a number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

FRAMES, SIZE, FPS = 17, 96, 8

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (45, 75, 225),
    "yellow": (240, 215, 50),
    "magenta": (225, 60, 200),
    "cyan": (50, 205, 215),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (22, 22, 26),
    "grey": (128, 128, 128),
    "white": (236, 236, 236),
    "brown": (112, 74, 44),
}
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SHAPES = ("circle", "square", "triangle", "cross")
ATTRIBUTES = ("colour", "shape", "direction", "background")
SOFTNESS = 5.0


_CAPTION = re.compile(r"an? (\w+) (\w+) moves (\w+)(?: past a small (\w+) (\w+))? on an? (\w+) background")


@dataclass(frozen=True)
class Scene:
    """What a caption says of a clip. ``other`` is the small still object, as (colour, shape), or None."""

    colour: str
    shape: str
    direction: str
    background: str
    other: tuple[str, str] | None = None

    @property
    def caption(self) -> str:
        past = f" past a small {self.other[0]} {self.other[1]}" if self.other else ""
        return f"a {self.colour} {self.shape} moves {self.direction}{past} on a {self.background} background"

    @classmethod
    def read(cls, caption: str) -> Scene:
        """The scene of a caption.

        Raises:
            ValueError: it is not of this form.
        """
        found = _CAPTION.fullmatch(caption.strip().lower())
        if found is None:
            raise ValueError(f"{caption!r} is not of the form {cls('red', 'circle', 'left', 'black').caption!r}")
        colour, shape, direction, other_colour, other_shape, background = found.groups()
        return cls(colour, shape, direction, background, (other_colour, other_shape) if other_colour else None)

    @property
    def held_out(self) -> bool:
        """One combination of attributes in eight is never trained on; prompts for scoring come from these."""
        names = (tuple(COLOURS), SHAPES, tuple(DIRECTIONS), tuple(BACKGROUNDS))
        place = [choices.index(getattr(self, name)) for name, choices in zip(ATTRIBUTES, names, strict=True)]
        return sum(i * k for i, k in zip(place, (1, 3, 2, 5), strict=True)) % 8 == 0


def coverage(shape: str, x: NDArray[np.float64], y: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """How much of each pixel the shape covers, 0…1, with a soft edge SOFTNESS pixels wide.

    ``x`` and ``y`` are offsets from the shape's centre in pixels, y down; the value comes from a signed distance.
    """
    if shape == "circle":
        distance = np.hypot(x, y) - radius
    elif shape == "square":
        distance = np.maximum(np.abs(x), np.abs(y)) - 0.89 * radius
    elif shape == "triangle":
        # An equilateral triangle, tip up: the largest of its three half-plane distances.
        sides = (y, (np.sqrt(3) * x - y) / 2, (-np.sqrt(3) * x - y) / 2)
        distance = np.maximum.reduce(sides) - 0.68 * radius
    elif shape == "cross":
        bars = (np.maximum(np.abs(x) - 1.1 * radius, np.abs(y) - 0.4 * radius),
                np.maximum(np.abs(y) - 1.1 * radius, np.abs(x) - 0.4 * radius))  # fmt: skip
        distance = np.minimum(*bars)
    else:
        raise ValueError(f"unknown shape {shape!r}; one of {', '.join(SHAPES)}")
    return np.clip(0.5 - distance / SOFTNESS, 0, 1)


def random_scene(rng: np.random.Generator, held_out: bool = False) -> Scene:
    """Draw a scene; ``held_out`` chooses which side of the train/score split it comes from."""
    while True:
        colour, shape, direction, background = (
            str(rng.choice(list(choices))) for choices in (COLOURS, SHAPES, DIRECTIONS, BACKGROUNDS)
        )
        scene = Scene(colour, shape, direction, background)
        if scene.held_out == held_out:
            break
    if rng.random() < 0.125:
        colour = str(rng.choice([c for c in COLOURS if c != scene.colour]))
        scene = replace(scene, other=(colour, str(rng.choice(SHAPES))))
    return scene


def held_out_scenes(count: int, seed: int = 0) -> list[Scene]:
    """The first ``count`` distinct scenes for scoring, the same on every machine."""
    rng = np.random.default_rng([seed, 0x5EED])
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = random_scene(rng, held_out=True)
        if scene not in scenes:
            scenes.append(scene)
    return scenes


def render(
    scene: Scene, rng: np.random.Generator, frames: int = FRAMES, height: int = SIZE, width: int = SIZE
) -> NDArray[np.uint8]:
    """Draw ``scene`` as uint8 [frames, height, width, 3]; ``rng`` chooses place, size and speed.

    The path's middle is near that of the frame, so that a caption says most of what is where: at the noisiest steps a
    model then learns shapes, and not the mean over all places. A short clip is the beginning of a whole one.
    """
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float64)
    radius = rng.uniform(0.23, 0.27) * min(height, width)
    step = np.array(DIRECTIONS[scene.direction], dtype=np.float64) * rng.uniform(0.20, 0.26) * min(height, width)
    middle = np.array([width, height]) * rng.uniform(0.44, 0.56, 2)
    start = middle - step / 2

    backdrop = np.broadcast_to(np.array(BACKGROUNDS[scene.background], dtype=np.float64), (height, width, 3))
    if scene.other:
        colour, shape = scene.other
        small = 0.4 * radius
        across = np.array(DIRECTIONS[scene.direction])[::-1] ** 2  # beside the path, never on it
        side = -1.0 if middle @ across > np.array([width, height]) @ across / 2 else 1.0
        place = start + step * rng.uniform(0.2, 0.8) + across * side * (1.2 * radius + 1.3 * small)
        place = np.clip(place, 1.2 * small, np.array([width, height]) - 1.2 * small)
        alpha = coverage(shape, xs - place[0], ys - place[1], small)[..., None]
        backdrop = backdrop * (1 - alpha) + np.array(COLOURS[colour]) * alpha

    clip = np.empty((frames, height, width, 3), np.uint8)
    for i in range(frames):
        x, y = start + step * (i / (max(frames, FRAMES) - 1))
        alpha = coverage(scene.shape, xs - x, ys - y, radius)[..., None]
        clip[i] = np.rint(backdrop * (1 - alpha) + np.array(COLOURS[scene.colour]) * alpha)
    return clip
