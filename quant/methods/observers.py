"""Which magnitude becomes a tensor's largest step: the largest seen, a percentile, or that of least squared error."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reelquant.quant.calibration.channels import BINS, OCTAVE, bin_edges
from reelquant.quant.formats import Format
from reelquant.quant.methods.primitives import dequantize, quantize, scale_from_absmax

OBSERVERS = ("minmax", "percentile", "mse")
_PERCENTILE = 99.99
_POINTS = 8  # of a bin, at which its error is looked at
_OCTAVES = 4  # below the largest value; no threshold lower than that


def threshold(observer: str, absmax: float, histogram: NDArray[np.int64], format: Format) -> float:
    """At most ``absmax``, the largest magnitude seen; of values with this histogram, to be quantized to ``format``.

    ``"percentile"``: the least bin edge under which 99.99 % of the values lie. ``"mse"``: the edge with which quantizing
    and clipping together make the least squared error, each bin's values taken as spread evenly on its logarithmic scale.
    """
    if observer == "minmax" or not histogram.any():
        return absmax
    edges = bin_edges()
    if observer == "percentile":
        share = np.cumsum(histogram) / histogram.sum()
        return min(absmax, float(edges[1 + int(np.searchsorted(share, _PERCENTILE / 100))]))
    points = (edges[:-1, None] * 2.0 ** ((np.arange(_POINTS) + 0.5) / _POINTS / OCTAVE)).astype(np.float32)
    points = np.minimum(points, np.float32(absmax))
    last = int(np.flatnonzero(histogram)[-1])
    candidates = [absmax, *edges[max(1, last - _OCTAVES * OCTAVE) : min(last + 1, BINS)]]

    def error(candidate: float) -> float:
        scale = scale_from_absmax(candidate, format)
        lost = dequantize(quantize(points, scale, format), scale) - points
        return float((histogram * np.square(lost.astype(np.float64)).mean(axis=1)).sum())

    return float(min(candidates, key=error))
