"""Read a clip back: the dominant object's colour, shape and direction, and the background."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from demo.clips import ATTRIBUTES, BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES, Scene, coverage

_LEAST_OBJECT = 0.01  # of the frame: less than this is noise, not an object
_OFF = 60.0  # of 441, the distance from black to white


def _nearest(pixels: NDArray[np.float64], palette: dict[str, tuple[int, int, int]]) -> NDArray[np.intp]:
    table = np.array(list(palette.values()), dtype=np.float64)
    return np.asarray(((pixels[..., None, :] - table) ** 2).sum(-1).argmin(-1))


def read_clip(clip: NDArray[np.uint8]) -> Scene | None:
    """Say what a uint8 [frames, height, width, 3] clip shows, or None when no object is in it.

    Pixels are named by their nearest palette entry. The dominant colour is the one that covers most pixels that are
    not background; the direction is that of its centroid from the first to the last quarter of the clip; the shape is
    the one whose outline of equal area overlaps the object best (intersection over union, averaged over frames).
    """
    height, width = clip.shape[1:3]
    pixels = clip.astype(np.float64)
    edge = np.concatenate([pixels[:, :4].reshape(-1, 3), pixels[:, -4:].reshape(-1, 3),
                           pixels[:, :, :4].reshape(-1, 3), pixels[:, :, -4:].reshape(-1, 3)])  # fmt: skip
    background = list(BACKGROUNDS)[int(np.bincount(_nearest(edge, BACKGROUNDS)).argmax())]

    palette = {**COLOURS, background: BACKGROUNDS[background]}
    named = _nearest(pixels, palette)
    counts = np.bincount(named.ravel(), minlength=len(palette))[: len(COLOURS)]
    colour = int(counts.argmax())
    if counts[colour] < _LEAST_OBJECT * named.size:
        return None

    ys, xs = np.mgrid[0:height, 0:width].astype(np.float64)
    centres: list[tuple[float, float]] = []
    overlap = np.zeros(len(SHAPES))
    for mask in named == colour:
        area = float(mask.sum())
        if area < _LEAST_OBJECT * mask.size:
            continue
        x, y = float(xs[mask].mean()), float(ys[mask].mean())
        centres.append((x, y))
        overlap += [_iou(mask, shape, xs - x, ys - y, area) for shape in SHAPES]
    quarter = max(1, len(centres) // 4)
    moved = np.mean(centres[-quarter:], 0) - np.mean(centres[:quarter], 0)
    direction = max(DIRECTIONS, key=lambda name: float(moved @ np.array(DIRECTIONS[name])))
    return Scene(list(COLOURS)[colour], SHAPES[int(overlap.argmax())], direction, background)


def shape_iou(scene: Scene, clip: NDArray[np.uint8]) -> float:
    """How well the clip's shape is drawn: intersection over union, 0…1, of the pixels that the scene's object covers by more than
    half with the ideal shape of their area at their centroid, mean over frames. A frame that shows too little counts as 0.

    A pixel's cover is how far its colour is on the way from the background's to the object's; one that is off that way by more
    than ``_OFF`` is something else's.
    """
    background = np.array(BACKGROUNDS[scene.background], np.float64)
    way = np.array(COLOURS[scene.colour], np.float64) - background
    pixels = clip.astype(np.float64) - background
    cover = pixels @ way / (way @ way)
    off = np.linalg.norm(pixels - cover[..., None] * way, axis=-1)
    ys, xs = np.mgrid[0 : clip.shape[1], 0 : clip.shape[2]].astype(np.float64)
    found = []
    for mask in (cover > 0.5) & (off < _OFF):
        area = float(mask.sum())
        seen = area >= _LEAST_OBJECT * mask.size
        found.append(_iou(mask, scene.shape, xs - xs[mask].mean(), ys - ys[mask].mean(), area) if seen else 0.0)
    return float(np.mean(found))


def _iou(mask: NDArray[np.bool_], shape: str, x: NDArray[np.float64], y: NDArray[np.float64], area: float) -> float:
    outline = coverage(shape, x, y, np.sqrt(area / _unit_area(shape))) > 0.5
    return float((mask & outline).sum() / (mask | outline).sum())


@cache
def _unit_area(shape: str) -> float:
    """Of the shape with a radius of 1, counted at one so large that its edge does not matter."""
    ys, xs = np.mgrid[-450:451, -450:451].astype(np.float64)
    return float((coverage(shape, xs, ys, 300.0) > 0.5).sum()) / 300.0**2


def score(scene: Scene, clip: NDArray[np.uint8]) -> dict[str, bool]:
    """Which attributes of ``scene`` the clip shows; all False when nothing can be seen in it."""
    seen = read_clip(clip)
    return {name: seen is not None and getattr(seen, name) == getattr(scene, name) for name in ATTRIBUTES}


def shown(caption: str, clip: NDArray[np.uint8]) -> float:
    """The share of a caption's attributes that the clip shows: a scorer for ``reelquant schedule``.

    Raises:
        ValueError: the caption is not of the demo's kind.
    """
    found = score(Scene.read(caption), clip)
    return sum(found.values()) / len(found)
