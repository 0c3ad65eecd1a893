"""Calibration where memory is short: block by block, to the same ranges."""

from __future__ import annotations

import numpy as np
import pytest

from reelquant.quant import calibrate as module
from reelquant.quant.blockwise import BlockwisePlan
from reelquant.quant.calibrate import CalibrationPlan, calibrate, fits
from reelquant.quant.calibration_data import CalibrationData
from reelquant.runtime.engine import Array, Feeds
from tests.conftest import BundleMaker


def test_block_by_block_the_ranges_are_the_same(demo_bundle: BundleMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, data, plan = demo_bundle("t2v", "fp32"), CalibrationData.load("demo"), CalibrationPlan(prompts=1, steps=1)
    whole = calibrate(bundle, data, plan)
    runs: list[int] = []
    run = BlockwisePlan.run

    def counted(self: BlockwisePlan, feeds: Feeds) -> dict[str, Array]:
        runs.append(len(self.parts))
        return run(self, feeds)

    monkeypatch.setattr(BlockwisePlan, "run", counted)
    monkeypatch.setattr(module, "available_memory", lambda: 1 << 20)
    parts = calibrate(bundle, data, plan)
    assert runs == [12]  # one guided step, two halves of six blocks
    assert parts.low.keys() == whole.low.keys()
    for name in whole.low:
        assert np.allclose(parts.low[name], whole.low[name], rtol=1e-4, atol=1e-5)
        assert np.allclose(parts.high[name], whole.high[name], rtol=1e-4, atol=1e-5)


def test_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_memory", lambda: 24 << 30)
    assert fits(7 << 30) and not fits(11 << 30)
    monkeypatch.setattr(module, "available_memory", lambda: None)
    assert fits(1 << 50)
