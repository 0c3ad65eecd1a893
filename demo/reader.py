"""Read a clip back: the dominant object's colour, shape and direction, and the background."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from demo.clips import ATTRIBUTES, BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES, Scene, coverage

_LEAST_OBJECT = 0.01  # of the frame: less than this is noise, not an object


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


def _iou(mask: NDArray[np.bool_], shape: str, x: NDArray[np.float64], y: NDArray[np.float64], area: float) -> float:
    radius = 10.0
    grid_y, grid_x = np.mgrid[-30:31, -30:31].astype(np.float64)
    unit = float((coverage(shape, grid_x, grid_y, radius) > 0.5).sum())
    outline = coverage(shape, x, y, radius * np.sqrt(area / unit)) > 0.5
    return float((mask & outline).sum() / (mask | outline).sum())


def score(scene: Scene, clip: NDArray[np.uint8]) -> dict[str, bool]:
    """Which attributes of ``scene`` the clip shows; all False when nothing can be seen in it."""
    seen = read_clip(clip)
    return {name: seen is not None and getattr(seen, name) == getattr(scene, name) for name in ATTRIBUTES}
