"""A bundle of a few-step model is calibrated and judged at its own timesteps, and without guidance on the one half that it has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reelquant.quant.calibration.calibrate import calibrate, sampling_of
from reelquant.quant.calibration.data import CalibrationData
from reelquant.quant.calibration.plan import CalibrationPlan
from reelquant.quant.evaluation.teacher import Trial
from reelquant.quant.quantize import quantize_bundle
from reelquant.quant.recipe import Recipe
from reelquant.runtime.bundle import Bundle, list_files, write_manifest
from reelquant.runtime.bundle.manifest import Defaults
from reelquant.runtime.errors import BundleError
from tests.conftest import TinyBundleMaker
from tests.tiny_bundle import RECIPE

OWN = [999, 856, 665, 399]


@pytest.fixture(scope="module")
def few(tiny_bundle: TinyBundleMaker, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    whole, folder = tiny_bundle("t2v"), tmp_path_factory.mktemp("few")
    whole.copy_files(folder)
    defaults = replace(whole.manifest.defaults, steps=4, timesteps=OWN, guidance=1.0)
    write_manifest(folder, replace(whole.manifest, defaults=defaults, files=list_files(folder)))
    return Bundle.open(folder)


def test_it_is_calibrated_and_tried_where_it_is_at_home(few: Bundle, tmp_path: Path) -> None:
    data, plan = CalibrationData.load("demo"), CalibrationPlan(prompts=2, steps=5)
    ranges = calibrate(few, data, plan)
    assert ranges.samples.timestep.tolist() == OWN * 2  # one row a step
    assert ranges.samples.conditional.all() and ranges.samples.prompt.tolist() == [0] * 4 + [1] * 4
    assert ranges.provenance.sampling == "CogVideoXDDIMScheduler, guidance 1, timesteps 999, 856, 665, 399"
    steps = Trial("demo", prompts=1, steps=3).record(few)
    assert [int(step.feeds["timestep"][0]) for step in steps] == OWN
    assert all(len(step.velocity) == 1 for step in steps)
    made = quantize_bundle(few, ranges, Recipe.parse(RECIPE), tmp_path / "int8", trial=Trial("demo", prompts=1))
    assert made.manifest.defaults == few.manifest.defaults and made.manifest.quantization is not None
    saved = tmp_path / "ranges"
    ranges.save(saved)
    assert type(ranges).load(saved).provenance == ranges.provenance


def test_what_a_calibration_sampled_is_told_apart(few: Bundle) -> None:
    manifest = few.manifest

    def of(**changes: object) -> str:
        return sampling_of(replace(manifest, defaults=replace(manifest.defaults, **changes)), 5)  # type: ignore[arg-type]

    said = [of(), of(timesteps=[9, 5]), of(timesteps=None), of(timesteps=None, steps=50), of(guidance=6.0)]
    assert len(set(said)) == 5 and said[3].endswith("guidance 1, 5 steps") and said[2].endswith("4 steps")


def test_which_models_are_of_few_steps() -> None:
    usual = Defaults(9, 32, 32)
    assert not usual.few_steps and not replace(usual, steps=11).few_steps
    assert replace(usual, steps=10).few_steps and replace(usual, timesteps=[9, 5]).few_steps


def test_requests_of_other_bundles_keep_their_steps(tiny_bundle: TinyBundleMaker) -> None:
    whole = tiny_bundle("t2v")
    longer = Bundle(whole.path, replace(whole.manifest, defaults=replace(whole.manifest.defaults, steps=50)))
    ranges = calibrate(longer, CalibrationData.load("demo"), CalibrationPlan(prompts=1, steps=3))
    assert ranges.samples.timestep.tolist() == [999, 999, 666, 666, 332, 332]
    np.testing.assert_array_equal(ranges.samples.conditional, [False, True] * 3)


def test_damaged_sampling_is_refused(few: Bundle, tmp_path: Path) -> None:
    ranges = calibrate(few, CalibrationData.load("demo"), CalibrationPlan(prompts=1, steps=1))
    ranges.save(tmp_path / "ranges")
    (file,) = (path for path in (tmp_path / "ranges").iterdir() if path.suffix == ".json")
    file.write_text(file.read_text().replace('"sampling": "', '"sampling": 3, "was": "'))
    with pytest.raises(BundleError):
        type(ranges).load(tmp_path / "ranges")
