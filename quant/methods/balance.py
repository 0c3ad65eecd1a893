"""Channel balancing: move what is hard to quantize from an activation's channels into the weights that read them.

    x·W + b  =  x'·W' + b',   x' = (x - c) / s,   W' = diag(s)·W,   b' = b + c·W

An activation has one static scale, so its largest channel sets the step of all others. ``s`` shares the work of large
channels with their weights (SmoothQuant, arXiv:2211.10438, eq. 4); ``c`` centres every channel, so that a channel that
is far from zero and narrow, or all on one side as after a GELU, does not waste the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reelquant.quant.calibration.channels import Channels
from reelquant.quant.methods.primitives import Floats, in_base

_TINY = 1e-9  # of a channel that is always zero
_WIDEST = 1e4  # of a channel's scale against the geometric mean of all
# A channel is taken to reach so many standard deviations, also where calibration saw less of it: a channel that hardly
# moves in a few clips would be stretched over the whole grid, and clipped in the next clip (docs/benchmarks.md).
_DEVIATIONS = 3.5


@dataclass(frozen=True, eq=False)
class Balance:
    """x' = x·``factor`` + ``summand``, both float32 [K] and exact in the graph's base; ``absmax`` of
    x', and its ``mean`` [K]."""

    factor: Floats
    summand: Floats
    absmax: float
    mean: Floats

    @property
    def scale(self) -> Floats:
        """s = 1 / factor, float32 [K]."""
        return np.asarray(1 / self.factor, np.float32)

    @property
    def shift(self) -> Floats:
        """c = -summand / factor, float32 [K]."""
        return np.asarray(-self.summand / self.factor, np.float32)

    def weight(self, matrix: Floats) -> Floats:
        """W' of a weight [K, N]."""
        return matrix * self.scale[:, None]


def balance(channels: Channels, weights: Sequence[Floats], strength: float, shift: bool, base: str = "fp32") -> Balance:
    """Balance an activation [..., K] against all ``weights`` [K, N] that read it, in a graph that computes in ``base``.

    ``strength`` is SmoothQuant's α: 0 leaves weights' rows equally large, 1 activations' channels. Without ``shift`` no
    channel is moved.
    """
    centre = (channels.low + channels.high) / 2 if shift else np.zeros_like(channels.low)
    seen = np.maximum(channels.high - centre, centre - channels.low)
    reach = np.maximum(seen, _DEVIATIONS * channels.deviation()) + _TINY
    rows = np.max([np.abs(matrix).max(axis=1) for matrix in weights], axis=0) + _TINY
    logarithm = strength * np.log(reach) - (1 - strength) * np.log(rows)
    scale = np.clip(np.exp(logarithm - logarithm.mean()), 1 / _WIDEST, _WIDEST)
    # Rounded before anything is computed with them: what the weights and the bias undo is what the graph does.
    factor, summand = in_base(1 / scale, base), in_base(-centre / scale, base)
    ends = [np.abs(end * factor + summand).max() for end in (centre - reach, centre + reach)]
    return Balance(factor, summand, float(max(ends)), channels.mean * factor + summand)


def identity(channels: Channels) -> Balance:
    """The balance that changes nothing."""
    ones = np.ones_like(channels.low)
    return Balance(ones, np.zeros_like(ones), float(max(channels.high.max(), -channels.low.min())), channels.mean)
