"""Every public variant at its full width, two layers deep, against its diffusers fp32 pipeline. Gigabytes each."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.random_checkpoint import write_checkpoint
from benchmarks.variants import VARIANTS
from reelquant.export.trace_bundle import trace_bundle
from tests.road.against_diffusers import TOLERANCE, Case, difference

CASES = [
    Case("cogvideox-2b", 9),
    Case("cogvideox-5b", 9),
    # Its learned positions are of this size alone, and ONNX Runtime would hold its attention's scores: 23 GB in all.
    Case("cogvideox-5b-i2v", 9, 480, 720, engine="openvino"),
    Case("cogvideox1.5-5b", 17),
    Case("cogvideox1.5-5b-i2v", 17),
]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_variant_at_full_width_is_its_diffusers_pipeline(case: Case, tmp_path: Path) -> None:
    checkpoint = tmp_path / case.variant
    write_checkpoint(checkpoint, VARIANTS[case.variant].layers(2))
    bundle = trace_bundle(str(checkpoint), tmp_path / "bundle")
    found = difference(case, checkpoint, bundle, case.engine)
    print(f"{case}: relative L2 {found:.1e}")
    assert found <= TOLERANCE
