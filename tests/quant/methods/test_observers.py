"""Thresholds from a histogram against the same from all values."""

from __future__ import annotations

import numpy as np
import pytest

from reelquant.quant.calibration.channels import BINS, LOWEST_OCTAVE, OCTAVE
from reelquant.quant.formats import FP8_E4M3, INT8, Format
from reelquant.quant.methods.observers import threshold
from reelquant.quant.methods.primitives import dequantize, quantize, scale_from_absmax


def values(outliers: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(0, 1, 200_000), rng.uniform(20, 30, outliers)]).astype(np.float32)


def histogram(x: np.ndarray) -> np.ndarray:
    place = np.floor(OCTAVE * (np.log2(np.maximum(np.abs(x), 2.0**LOWEST_OCTAVE)) - LOWEST_OCTAVE)).astype(int)
    return np.bincount(np.clip(place, 0, BINS - 1), minlength=BINS)


def test_minmax_is_the_largest() -> None:
    assert threshold("minmax", 7.5, np.zeros(BINS, np.int64), INT8) == 7.5
    assert threshold("mse", 7.5, np.zeros(BINS, np.int64), INT8) == 7.5  # nothing was counted


def test_percentile() -> None:
    x = values()
    found = threshold("percentile", float(np.abs(x).max()), histogram(x), INT8)
    exact = np.percentile(np.abs(x), 99.99)
    assert exact <= found <= exact * 2 ** (1 / OCTAVE) * 1.001
    few = np.array([1.0, 2.0, 3.0], np.float32)
    assert threshold("percentile", 3.0, histogram(few), INT8) == 3.0


@pytest.mark.parametrize("format", [INT8, FP8_E4M3])
def test_least_squared_error(format: Format) -> None:
    x = values()
    largest = float(np.abs(x).max())

    def error(absmax: float) -> float:
        scale = scale_from_absmax(absmax, format)
        return float(np.square(dequantize(quantize(x, scale, format), scale) - x, dtype=np.float64).sum())

    best = min(error(candidate) for candidate in np.geomspace(largest / 16, largest, 200))
    found = threshold("mse", largest, histogram(x), format)
    assert found <= largest and error(found) < 1.05 * best
    if format == INT8:
        assert error(found) < 0.6 * error(largest)
