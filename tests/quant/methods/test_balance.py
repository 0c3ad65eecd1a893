"""Balancing changes no product, only how hard its two factors are to quantize."""

from __future__ import annotations

import numpy as np
import pytest

from reelquant.quant.calibration.channels import Channels
from reelquant.quant.methods.balance import balance, identity
from reelquant.quant.methods.primitives import in_base

K = 24


def activation(seed: int = 0) -> np.ndarray:
    """500 rows of K channels of very different sizes and centres, each with values far out."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, (500, K)) ** 3 * np.exp(rng.normal(0, 1.5, K)) + rng.normal(0, 3, K)


def channels_of(x: np.ndarray, blocks: int = 1) -> Channels:
    cut = x.reshape(len(x), blocks, -1)
    second = np.einsum("tbi,tbj->bij", cut, cut) / len(x)
    each = (x.min(0), x.max(0), x.mean(0), second)
    return Channels(*(np.asarray(part, np.float32) for part in each))


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_the_product_stays(strength: float, shift: bool) -> None:
    x, rng = activation(), np.random.default_rng(1)
    weight = rng.normal(0, 1, (K, 7)).astype(np.float32)
    found = balance(channels_of(x), [weight], strength, shift)
    balanced = (x - found.shift) / found.scale
    np.testing.assert_allclose(balanced @ found.weight(weight) + found.shift @ weight, x @ weight, rtol=1e-4, atol=1e-3)
    assert np.abs(balanced).max() == pytest.approx(found.absmax, rel=1e-5)
    np.testing.assert_allclose(balanced.mean(0), found.mean, atol=1e-4)
    assert np.any(found.shift != 0) == shift
    if shift:  # the largest and the smallest value of every channel are opposites
        np.testing.assert_allclose(balanced.max(0), -balanced.min(0), rtol=1e-4)


def test_the_ends_of_the_strength() -> None:
    """1 makes all channels equally large, 0 all rows of the weights, 1/2 each channel as large as its row."""
    x, rng = activation(), np.random.default_rng(1)
    weights = [rng.normal(0, 1, (K, 7)).astype(np.float32) for _ in range(2)]

    def spread(strength: float) -> tuple[np.ndarray, np.ndarray]:
        found = balance(channels_of(x), weights, strength, True)
        rows = np.max([np.abs(found.weight(weight)).max(1) for weight in weights], axis=0)
        return np.abs((x - found.shift) / found.scale).max(0), rows

    largest, _ = spread(1.0)
    np.testing.assert_allclose(largest, largest[0], rtol=1e-4)
    _, rows = spread(0.0)
    np.testing.assert_allclose(rows, rows[0], rtol=1e-4)
    largest, rows = spread(0.5)
    np.testing.assert_allclose(largest / rows, largest[0] / rows[0], rtol=1e-3)


def test_a_channel_is_expected_to_reach_further_than_it_was_seen() -> None:
    """Where every value lies within 3.5 standard deviations, as of 500 even ones."""
    x = np.random.default_rng(3).uniform(-1, 1, (500, K)) + 5
    weight = np.ones((K, 2), np.float32)
    found = balance(channels_of(x), [weight], 1.0, True)
    reach = np.abs((x - found.shift) / found.scale).max(0)
    np.testing.assert_allclose(found.absmax / reach, 3.5 * x.std(0) / ((x.max(0) - x.min(0)) / 2), rtol=1e-3)


def test_a_channel_of_zeros_or_of_one_value() -> None:
    x = activation()
    x[:, 3], x[:, 4] = 0, 5
    weight = np.ones((K, 2), np.float32)
    found = balance(channels_of(x), [weight], 0.8, True)
    assert np.isfinite(found.scale).all() and (found.scale > 0).all() and found.shift[4] == 5
    balanced = (x - found.shift) / found.scale
    np.testing.assert_allclose(balanced @ found.weight(weight) + found.shift @ weight, x @ weight, rtol=1e-4, atol=1e-3)


def test_the_identity_changes_nothing() -> None:
    x = activation()
    found = identity(channels_of(x))
    assert found.absmax == np.float32(np.abs(x).max()) and not found.shift.any() and (found.scale == 1).all()


@pytest.mark.parametrize("base", ["fp16", "bf16"])
def test_a_base_holds_what_the_graph_computes_with(base: str) -> None:
    """And the product stays, since weights and bias undo the rounded numbers."""
    x, rng = activation(), np.random.default_rng(1)
    weight = rng.normal(0, 1, (K, 7)).astype(np.float32)
    found = balance(channels_of(x), [weight], 0.8, True, base)
    for numbers in (found.factor, found.summand):
        assert (in_base(numbers, base) == numbers).all()
    balanced = x * found.factor + found.summand
    np.testing.assert_allclose(balanced @ found.weight(weight) + found.shift @ weight, x @ weight, rtol=1e-3, atol=1e-3)
    assert np.abs(balanced).max() == pytest.approx(found.absmax, rel=1e-5)
