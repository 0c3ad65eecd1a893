"""A picture on which a turn or a mirror shows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def picture(height: int = 32, width: int = 32) -> NDArray[np.uint8]:
    """Four quarters that differ, so that a turn or a mirror shows."""
    half, wide = height // 2, width // 2
    found = np.zeros((height, width, 3), np.uint8)
    found[:half, :wide], found[:half, wide:], found[half:, :wide] = 250, 170, 90
    return found
