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

from reelquant.quant.statistics import Channels, Floats

_TINY = 1e-9  # of a channel that is always zero
_WIDEST = 1e4  # of a channel's scale against the geometric mean of all


@dataclass(frozen=True, eq=False)
class Balance:
    """``scale`` and ``shift``: float32 [K]; ``absmax`` of x', whose ``mean`` is float32 [K]."""

    scale: Floats
    shift: Floats
    absmax: float
    mean: Floats

    def weight(self, matrix: Floats) -> Floats:
        """W' of a weight [K, N]."""
        return matrix * self.scale[:, None]


def balance(channels: Channels, weights: Sequence[Floats], strength: float, shift: bool) -> Balance:
    """Balance an activation [..., K] against all ``weights`` [K, N] that read it.

    ``strength`` is SmoothQuant's α: 0 leaves weights' rows equally large, 1 activations' channels. Without ``shift`` no
    channel is moved.
    """
    centre = (channels.low + channels.high) / 2 if shift else np.zeros_like(channels.low)
    reach = np.maximum(channels.high - centre, centre - channels.low) + _TINY
    rows = np.max([np.abs(matrix).max(axis=1) for matrix in weights], axis=0) + _TINY
    logarithm = strength * np.log(reach) - (1 - strength) * np.log(rows)
    scale = np.clip(np.exp(logarithm - logarithm.mean()), 1 / _WIDEST, _WIDEST).astype(np.float32)
    return Balance(
        scale=scale,
        shift=centre.astype(np.float32),
        absmax=float((reach / scale).max()),
        mean=((channels.mean - centre) / scale).astype(np.float32),
    )


def identity(channels: Channels) -> Balance:
    """The balance that changes nothing."""
    ones = np.ones_like(channels.low)
    return Balance(ones, np.zeros_like(ones), float(max(channels.high.max(), -channels.low.min())), channels.mean)
