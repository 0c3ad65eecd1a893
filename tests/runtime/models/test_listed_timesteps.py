"""Steps at timesteps that are listed: by the papers' formulas, and as diffusers' where they are evenly spaced."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from reelquant.runtime.errors import BadInput
from tests.runtime.models import test_schedulers
from tests.runtime.models.test_schedulers import CLASSES, SHAPE, assert_same_run, ours, theirs

LISTED = (999, 856, 665, 399)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("steps", [4, 10])
def test_evenly_spaced_timesteps_that_are_listed_are_as_steps(
    monkeypatch: pytest.MonkeyPatch, name: str, steps: int
) -> None:
    """Where the stride divides 1000, each of diffusers' steps goes to its next timestep, as each from a listed one does."""
    spaced = ours(name).timesteps(steps)
    monkeypatch.setattr(test_schedulers, "ours", lambda name: ours(name).at(spaced))
    assert_same_run(monkeypatch, name, steps, {})


@pytest.mark.parametrize("name", CLASSES)
def test_listed_timesteps_by_the_papers_formulas(name: str) -> None:
    """In float64, with levels from diffusers: eq. 12 of DDIM; eq. 14 of SDE-DPM-Solver++(2M), in terms of half log SNR."""
    rng, noise = np.random.default_rng(3), np.random.default_rng(4).standard_normal((4, *SHAPE), dtype=np.float32)
    left = iter(noise)
    scheduler = ours(name).at(LISTED)
    run = scheduler.begin(4, rng, lambda shape: next(left))
    np.testing.assert_array_equal(run.timesteps, LISTED)
    assert run.timesteps.dtype == np.int64
    alphas = theirs(name).alphas_cumprod.double().numpy()
    levels = [*alphas[list(LISTED)], 1.0]
    latents = rng.standard_normal(SHAPE, dtype=np.float32)
    wanted, clean_before = latents.astype(np.float64), None
    with np.errstate(divide="ignore"):
        half_log_snr = [0.5 * np.log(a) - 0.5 * np.log1p(-a) for a in levels]
    for i in range(4):
        output = rng.standard_normal(SHAPE, dtype=np.float32)
        a, b = levels[i], levels[i + 1]
        clean = a**0.5 * wanted - (1 - a) ** 0.5 * output
        if name == "CogVideoXDDIMScheduler":
            drift = (wanted - a**0.5 * clean) / (1 - a) ** 0.5
            wanted = b**0.5 * clean + (1 - b) ** 0.5 * drift
        else:
            h, toward = half_log_snr[i + 1] - half_log_snr[i], clean
            if clean_before is not None and i < 3:  # from two of them, but not at the last step
                r = (half_log_snr[i] - half_log_snr[i - 1]) / h
                toward = clean + (clean - clean_before) / (2 * r)
            wanted = (
                ((1 - b) / (1 - a)) ** 0.5 * np.exp(-h) * wanted
                + b**0.5 * (1 - np.exp(-2 * h)) * toward
                + (1 - b) ** 0.5 * (1 - np.exp(-2 * h)) ** 0.5 * noise[i]
            )
            clean_before = clean
        latents = run.step(i, output, latents)
        np.testing.assert_allclose(latents, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max(), err_msg=f"step {i}")
    assert scheduler.draws(4) == ([] if name == "CogVideoXDDIMScheduler" else [1, 2, 2, 1])


def test_skipped_steps_of_listed_timesteps() -> None:
    run = ours(CLASSES[0]).at(LISTED).begin(4, np.random.default_rng(0), skip=2)
    np.testing.assert_array_equal(run.timesteps, LISTED[2:])


@pytest.mark.parametrize(
    ("timesteps", "words"),
    [
        ([], "there are no timesteps; give whole numbers from 999 down to 0, each less"),
        ([1000, 5], "timestep 1000 is not from 0 to 999"),
        ([5, -1], "timestep -1 is not from 0 to 999"),
        ([5, 5], "timestep 5 comes after 5 and is not less"),
        ([5, 800], "timestep 800 comes after 5 and is not less"),
        ([99.5, 3], "timestep 99.5 is not from 0"),
        ([True], "timestep True is not from 0"),
        (["7"], "timestep '7' is not from 0"),
        ([None], "timestep None is not from 0"),
    ],
)
def test_timesteps_that_no_run_has(timesteps: Any, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        ours(CLASSES[0]).at(timesteps)


def test_another_number_of_steps_than_are_listed() -> None:
    with pytest.raises(ValueError, match="5 steps, and 4 timesteps are listed"):
        ours(CLASSES[0]).at(LISTED).timesteps(5)
