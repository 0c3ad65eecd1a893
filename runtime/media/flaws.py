"""What a clip looks like when its making broke without a NaN: nothing to see, or nothing that moves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BLACK = 16  # black in video's limited range; no scene is darker everywhere
_SAME = 1  # steps of 255 that decoding may differ by on the same latents


class FlawWatch:
    """Looks at a clip's frames as they come, and holds the first of them alone."""

    def __init__(self) -> None:
        self._first: NDArray[np.int16] | None = None
        self._least, self._most = np.full(3, 255), np.zeros(3, int)
        self._many, self._moves = False, False

    def see(self, frames: NDArray[np.uint8]) -> None:
        """More frames, uint8 [frames, height, width, 3]."""
        self._least = np.minimum(self._least, frames.min(axis=(0, 1, 2)))
        self._most = np.maximum(self._most, frames.max(axis=(0, 1, 2)))
        if self._first is None:
            self._first, frames = frames[0].astype(np.int16), frames[1:]
        self._many = self._many or len(frames) > 0
        first = self._first
        self._moves = self._moves or any(int(np.abs(frame - first).max()) > _SAME for frame in frames)

    def flaws(self) -> tuple[str, ...]:
        """Of all that was seen: "black", "blank" (one colour everywhere), "frozen" (all frames alike); usually nothing.

        A clip of one frame cannot be frozen.
        """
        if int(self._most.max()) <= _BLACK:
            return ("black",)
        if int((self._most - self._least).max()) <= 2 * _SAME:
            return ("blank",)
        return ("frozen",) if self._many and not self._moves else ()


def flaws(frames: NDArray[np.uint8]) -> tuple[str, ...]:
    """As :meth:`FlawWatch.flaws`, of a clip's frames uint8 [frames, height, width, 3]."""
    watch = FlawWatch()
    watch.see(frames)
    return watch.flaws()
