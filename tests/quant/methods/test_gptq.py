"""GPTQ against the algorithm in its plainest form, and against rounding to nearest on what it is for."""

from __future__ import annotations

import numpy as np
import pytest

from reelquant.quant.formats import FP8_E4M3, INT4, INT8, Blocked, Format, Granularity, PerChannel, PerTensor
from reelquant.quant.methods import gptq as module
from reelquant.quant.methods.gptq import gptq
from reelquant.quant.methods.primitives import dequantize, quantize, weight_scales

CASES = [(INT8, PerChannel(1)), (FP8_E4M3, PerTensor()), (INT4, Blocked(16)), (INT4, PerChannel(1))]


def problem(seed: int = 0, rows: int = 64, columns: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Correlated activations [tokens, rows] and a weight [rows, columns]."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (800, 8)) @ rng.normal(0, 1, (8, rows)) + 0.3 * rng.normal(0, 1, (800, rows))
    return x, rng.normal(0, 1, (rows, columns)).astype(np.float32)


def plainest(weight: np.ndarray, scales: np.ndarray, moments: np.ndarray, format: Format) -> np.ndarray:
    """One row after the other; each time the inverse is made anew from the moments of the rows that are left."""
    order = np.argsort(-np.diag(moments), kind="stable")
    damped = moments + module._DAMP * np.diag(moments).mean() * np.eye(len(moments))
    left, found = weight.astype(np.float64), np.empty(weight.shape, format.dtype)
    for place, row in enumerate(order):
        scale = scales if scales.ndim < 2 else scales[row * len(scales) // len(weight)]
        found[row] = quantize(left[row].astype(np.float32), scale, format)
        lost = left[row] - dequantize(found[row], scale)
        rest = order[place + 1 :]
        inverse = np.linalg.inv(damped[np.ix_(order[place:], order[place:])])
        left[rest] -= np.outer(inverse[1:, 0] / inverse[0, 0], lost)
    return found


@pytest.mark.parametrize(("format", "granularity"), CASES)
def test_it_is_the_algorithm(
    format: Format, granularity: Granularity | Blocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH", 24)  # so that errors cross batches, the last one short
    x, weight = problem()
    moments, scales = x.T @ x / len(x), weight_scales(weight, format, granularity)
    found = gptq(weight, scales, moments[None], format)
    same = found == plainest(weight, scales, moments, format)
    assert same.mean() > 0.99  # float32 may fall to the other side of a rounding boundary


@pytest.mark.parametrize(("format", "granularity"), CASES)
def test_the_product_gains(format: Format, granularity: Granularity | Blocked) -> None:
    x, weight = problem(1)
    scales = weight_scales(weight, format, granularity)

    def error(stored: np.ndarray) -> float:
        return float(np.linalg.norm(x @ (dequantize(stored, scales, 1) - weight)) / np.linalg.norm(x @ weight))

    nearest = error(quantize(weight, scales, format, 1))
    assert error(gptq(weight, scales, (x.T @ x / len(x))[None], format)) < 0.6 * nearest


def test_channels_that_have_nothing_in_common_are_rounded_to_nearest() -> None:
    _, weight = problem()
    scales = weight_scales(weight, INT8, PerChannel(1))
    moments = np.diag(np.random.default_rng(2).uniform(0.1, 3, len(weight)))[None]
    assert (gptq(weight, scales, moments, INT8) == quantize(weight, scales, INT8, 1)).all()


def test_blocks_are_rounded_by_themselves() -> None:
    x, weight = problem()
    scales = weight_scales(weight, INT8, PerChannel(1))
    halves = np.stack([x[:, part].T @ x[:, part] / len(x) for part in (slice(0, 32), slice(32, 64))])
    whole = gptq(weight, scales, halves, INT8)
    parts = [gptq(weight[:32], scales, halves[:1], INT8), gptq(weight[32:], scales, halves[1:], INT8)]
    assert (whole == np.concatenate(parts)).all()


def test_a_channel_that_was_never_seen() -> None:
    x, weight = problem()
    x[:, 5] = 0
    scales = weight_scales(weight, INT8, PerChannel(1))
    found = gptq(weight, scales, (x.T @ x / len(x))[None], INT8)
    assert (found[5] == quantize(weight[5], scales, INT8)).all()
    assert gptq(weight, scales, np.zeros((1, 64, 64)), INT8).shape == weight.shape
