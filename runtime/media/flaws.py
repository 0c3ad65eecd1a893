"""What a clip looks like when its making broke without a NaN: nothing to see, or nothing that moves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BLACK = 16  # black in video's limited range; no scene is darker everywhere
_SAME = 1  # steps of 255 that decoding may differ by on the same latents


def flaws(frames: NDArray[np.uint8]) -> tuple[str, ...]:
    """Of frames uint8 [frames, height, width, 3]: "black", "blank" (one colour everywhere), "frozen" (all frames alike).

    A clip of one frame cannot be frozen.
    """
    least, most = frames.min(axis=(0, 1, 2)), frames.max(axis=(0, 1, 2))
    if int(most.max()) <= _BLACK:
        return ("black",)
    if int((most - least).max()) <= 2 * _SAME:
        return ("blank",)
    first = frames[0].astype(np.int16)
    if len(frames) > 1 and all(int(np.abs(frame - first).max()) <= _SAME for frame in frames[1:]):
        return ("frozen",)
    return ()
