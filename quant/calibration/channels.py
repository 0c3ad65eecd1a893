"""What calibration keeps of a tensor's values: statistics of each channel, and a histogram of magnitudes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelquant.quant.methods.primitives import Floats
from reelquant.runtime.errors import BundleError

# The second moments of more channels are kept in blocks along the diagonal: the whole square of 5b's 12288 channels
# would be 600 MB for each of its 42 blocks.
_LARGEST_BLOCK = 1024
# Bins of a histogram: 16 to an octave, so a bin is 4.4 % wide, from 2^-32 to 2^16. Its range needs no first pass.
OCTAVE, LOWEST_OCTAVE, BINS = 16, -32, 16 * 48


@dataclass(frozen=True, eq=False)
class Channels:
    """Of a tensor [..., K], over all samples: ``low``, ``high`` and ``mean`` of every channel, float32 [K], and ``second``,
    E[x_i · x_j] of channels in one block, float32 [blocks, K / blocks, K / blocks].

    Raises:
        BundleError: arrays that do not fit each other, or a value that is infinite or NaN.
    """

    low: Floats
    high: Floats
    mean: Floats
    second: Floats

    def __post_init__(self) -> None:
        count = len(self.low)
        side = self.second.shape[-1]
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("low", "high", "mean"), (count,))
        shapes["second"] = (count // side, side, side)
        for part in fields(self):
            array: NDArray[Any] = getattr(self, part.name)
            if array.dtype != np.float32 or array.shape != shapes[part.name] or not np.isfinite(array).all():
                raise BundleError(f"a channel's {part.name} is damaged, infinite or not a number; calibrate again")

    def covariance(self) -> NDArray[np.float64]:
        """float64 [blocks, K / blocks, K / blocks]."""
        mean = self.mean.astype(np.float64).reshape(len(self.second), -1)
        return self.second - mean[:, :, None] * mean[:, None, :]

    def deviation(self) -> Floats:
        """The standard deviation of each channel, float32 [K]."""
        variance = np.concatenate([np.diag(block) for block in self.covariance()])
        return np.asarray(np.sqrt(np.maximum(variance, 0)), np.float32)


def blocks_of(channels: int) -> int:
    """Into how many equal blocks the second moments of so many channels are cut."""
    return next(
        count for count in range(1, channels + 1) if channels % count == 0 and channels // count <= _LARGEST_BLOCK
    )


def bin_edges() -> NDArray[np.float64]:
    """The magnitudes [BINS + 1] between which a histogram's bins lie; the first bin has all below too, the last all above."""
    return np.asarray(2.0 ** (np.arange(BINS + 1) / OCTAVE + LOWEST_OCTAVE))
