"""How far arrays are apart, and that nothing goes on after it is said."""

from __future__ import annotations

import time

import numpy as np
import pytest

from reelquant.runtime.relative_l2 import l2, relative_l2


def test_infinite_for_what_cannot_be_compared() -> None:
    one = np.ones((2, 2))
    assert relative_l2(one * 1.5, one) == pytest.approx(0.5)
    assert relative_l2(np.array([[1.0, np.nan], [1, 1]]), one) == float("inf")
    assert relative_l2(np.ones(4), one) == float("inf")


def test_sums_are_in_float64() -> None:
    assert l2(np.full(10, 1e30, np.float32)) == pytest.approx(1e30 * 10**0.5)
    assert relative_l2(np.array([255], np.uint8), np.array([0], np.uint8)) == 255 / 1e-30
    assert l2(np.array([300, 400], np.int16)) == 500


def test_no_thread_goes_on_after_it() -> None:
    """The threads of BLAS wait for more in a busy loop, on the cores that the next step needs."""
    x = np.random.default_rng(0).normal(size=1_000_000).astype(np.float32)
    took = []
    for _ in range(5):
        relative_l2(x, x + 1)
        began = time.process_time()
        time.sleep(0.02)
        took.append(time.process_time() - began)
    assert min(took) < 0.002
