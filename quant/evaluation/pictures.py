"""How near the frames of two clips are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def psnr(found: Pixels, wanted: Pixels) -> float:
    """Peak signal-to-noise ratio of uint8 frames in dB, at most 138 (equal frames)."""
    error = np.mean(np.square(found.astype(np.float64) - wanted))
    return float(10 * np.log10(255**2 / max(float(error), 1e-9)))
