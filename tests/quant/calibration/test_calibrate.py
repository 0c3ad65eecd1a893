"""Calibration where memory is short: block by block, to the same ranges."""

from __future__ import annotations

import numpy as np
import pytest

from reelquant.quant.calibration import plan as calibration_plan
from reelquant.quant.calibration.calibrate import calibrate
from reelquant.quant.calibration.data import CalibrationData
from reelquant.quant.calibration.plan import CalibrationPlan
from reelquant.quant.graph import scratch_session
from reelquant.quant.graph.blockwise import BlockwiseSession
from reelquant.quant.graph.scratch_session import fits
from reelquant.runtime.engines.session import Array, Values
from reelquant.runtime.errors import BadInput
from reelquant.runtime.models import model_of
from reelquant.runtime.sizes import Size
from tests.conftest import BundleMaker


def test_block_by_block_the_ranges_are_the_same(demo_bundle: BundleMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, data = demo_bundle("t2v", "fp32"), CalibrationData.load("demo")
    plan = CalibrationPlan(prompts=1, steps=1, size=Size(9, 64, 48))
    whole = calibrate(bundle, data, plan)
    made = whole.provenance
    assert (made.frames, made.height, made.width) == (9, 64, 48)
    runs: list[int] = []
    run = BlockwiseSession.run

    def counted(self: BlockwiseSession, feeds: Values) -> dict[str, Array]:
        runs.append(len(self.parts))
        return run(self, feeds)

    monkeypatch.setattr(BlockwiseSession, "run", counted)
    monkeypatch.setattr(scratch_session, "available_memory", lambda: 1 << 20)
    parts = calibrate(bundle, data, plan)
    assert runs == [12]  # one guided step, two halves of six blocks
    assert parts.low.keys() == whole.low.keys()
    for name in whole.low:
        assert np.allclose(parts.low[name], whole.low[name], rtol=1e-4, atol=1e-5)
        assert np.allclose(parts.high[name], whole.high[name], rtol=1e-4, atol=1e-5)


def test_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch_session, "available_memory", lambda: 24 << 30)
    assert fits(7 << 30, "openvino") and not fits(13 << 30, "openvino") and fits(13 << 30, "onnxruntime")
    monkeypatch.setattr(scratch_session, "available_memory", lambda: None)
    assert fits(1 << 50, "openvino")


def test_clips_whose_attention_does_not_fit(demo_bundle: BundleMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused with what fits; the demo's own size always does."""
    manifest = demo_bundle("t2v", "fp32").manifest
    monkeypatch.setattr(calibration_plan, "available_memory", lambda: 6 << 30)
    ask = (manifest.defaults, model_of(manifest))
    own = CalibrationPlan().clip_size(*ask)
    assert (own.frames, own.height, own.width) == (17, 96, 96)
    said = "holds 7.4 GB of attention scores, where 6.4 GB of memory are free; a size that fits: 41x416x624"
    with pytest.raises(BadInput, match=said):
        CalibrationPlan(size=Size(49, 480, 720)).clip_size(*ask)
