"""Both schedulers against diffusers' own, step by step, and what they refuse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_dpm_cogvideox

from reelquant.runtime.errors import BadInput, BundleError
from reelquant.runtime.models.cogvideox.schedulers import Scheduler, scheduler_from_config, with_class

CLASSES = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
SHAPE = (1, 3, 4, 6, 10)
# CogVideoX-5b's scheduler_config.json.
BASE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "sample_max_value": 1.0,
    "set_alpha_to_one": True,
    "snr_shift_scale": 1.0,
    "steps_offset": 0,
    "timestep_spacing": "trailing",
}
LEADING = {"timestep_spacing": "leading", "rescale_betas_zero_snr": False}


def ours(name: str, **changes: Any) -> Scheduler:
    return scheduler_from_config({"_class_name": name, "_diffusers_version": "0.42.1", **BASE, **changes})


def theirs(name: str, **changes: Any) -> Any:
    return getattr(diffusers, name)(**{**BASE, **changes})


def assert_same_run(monkeypatch: pytest.MonkeyPatch, name: str, steps: int, changes: Mapping[str, Any]) -> None:
    """Run both to the end on the same random model outputs and noise; every step must agree to 1e-5 of its range."""
    rng = np.random.default_rng(7)
    noise, drawn = np.empty(SHAPE, np.float32), 0

    def draw(*_: object, **__: object) -> torch.Tensor:
        """diffusers draws twice in most DPM steps and drops the first; both see the step's one noise here."""
        nonlocal drawn
        drawn += 1
        return torch.from_numpy(noise)

    monkeypatch.setattr(scheduling_dpm_cogvideox, "randn_tensor", draw)
    run = ours(name, **changes).begin(steps, rng, lambda shape: noise)
    reference = theirs(name, **changes)
    reference.set_timesteps(steps)
    expected_steps = reference.timesteps[:steps]
    np.testing.assert_array_equal(run.timesteps, expected_steps.numpy())
    assert run.timesteps.dtype == np.int64

    latents = rng.standard_normal(SHAPE, dtype=np.float32)
    counts: list[int] = []
    expected, old = torch.from_numpy(latents), None
    for i, timestep in enumerate(expected_steps):
        noise = rng.standard_normal(SHAPE, dtype=np.float32)
        output = rng.standard_normal(SHAPE, dtype=np.float32)
        latents = run.step(i, output, latents)
        if name == "CogVideoXDDIMScheduler":
            expected = reference.step(torch.from_numpy(output), timestep, expected, return_dict=False)[0]
        else:
            back = expected_steps[i - 1] if i else None
            expected, old = reference.step(torch.from_numpy(output), old, timestep, back, expected)
            counts.append(drawn - sum(counts))
        assert latents.dtype == np.float32
        scale = max(1.0, float(expected.abs().max()))
        np.testing.assert_allclose(latents, expected.numpy(), rtol=0, atol=1e-5 * scale, err_msg=f"step {i}")
    assert ours(name, **changes).draws(steps) == counts


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_runs_of_the_published_checkpoints(
    monkeypatch: pytest.MonkeyPatch, name: str, steps: int, shift: float
) -> None:
    assert_same_run(monkeypatch, name, steps, {"snr_shift_scale": shift})


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    "changes",
    [
        {"beta_schedule": "linear"},
        {"beta_schedule": "linear", "rescale_betas_zero_snr": False, "snr_shift_scale": 3},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.001 + 0.00002 * i for i in range(1000)]},
        {"num_train_timesteps": 500, "beta_end": 0.02},
        {"prediction_type": "epsilon", **LEADING},
        {"prediction_type": "sample"},
        {"steps_offset": 1, **LEADING},
        {"timestep_spacing": "linspace"},
        {"set_alpha_to_one": False},
        {"set_alpha_to_one": False, **LEADING},
        {"clip_sample": True, "clip_sample_range": 0.1},
    ],
    ids=str,
)
def test_runs_with_any_field_changed(monkeypatch: pytest.MonkeyPatch, name: str, changes: dict[str, Any]) -> None:
    assert_same_run(monkeypatch, name, 10, changes)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("steps", [1, 2, 7, 61])
def test_runs_of_odd_lengths(monkeypatch: pytest.MonkeyPatch, name: str, steps: int) -> None:
    """7 does not divide 1000, so its last step stops short of the end; at 61 diffusers appends a timestep of -1."""
    assert_same_run(monkeypatch, name, steps, {})


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_timesteps_of_every_length(spacing: str) -> None:
    scheduler, reference = ours(CLASSES[0], timestep_spacing=spacing), theirs(CLASSES[0], timestep_spacing=spacing)
    for steps in range(1, 1001):
        reference.set_timesteps(steps)
        made = scheduler.timesteps(steps)
        assert made.shape == (steps,) and made.min() >= 0
        np.testing.assert_array_equal(made, reference.timesteps.numpy()[:steps])


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_snr", [True, False])
def test_levels_and_added_noise(name: str, schedule: str, zero_snr: bool) -> None:
    changes = {"beta_schedule": schedule, "rescale_betas_zero_snr": zero_snr, "snr_shift_scale": 3.0}
    scheduler, reference = ours(name, **changes), theirs(name, **changes)
    assert scheduler.levels.dtype == reference.alphas_cumprod.numpy().dtype
    np.testing.assert_allclose(scheduler.levels, reference.alphas_cumprod.numpy(), rtol=0, atol=1e-6)
    assert scheduler.init_noise_sigma == reference.init_noise_sigma == 1.0
    rng = np.random.default_rng(0)
    original, noise = rng.standard_normal(SHAPE, dtype=np.float32), rng.standard_normal(SHAPE, dtype=np.float32)
    for timestep in (0, 1, 500, 999):
        made = scheduler.add_noise(original, noise, timestep)
        expected = reference.add_noise(
            torch.from_numpy(original), torch.from_numpy(noise), torch.tensor([timestep])
        ).numpy()
        assert made.dtype == np.float32
        # torch's float32 sqrt can be a bit off; where 1−ᾱ is only 1e-4, one bit of a float32 ᾱ is worth 2e-5 of noise.
        np.testing.assert_allclose(made, expected, rtol=0, atol=1e-5 if schedule == "scaled_linear" else 3e-5)
    with pytest.raises(ValueError, match="-1 is not from 0 to 999"):
        scheduler.add_noise(original, noise, -1)


def test_absent_fields_take_diffusers_defaults() -> None:
    for name in CLASSES:
        reference = getattr(diffusers, name)()
        scheduler = scheduler_from_config({"_class_name": name})
        for field, value in vars(scheduler.config).items():
            assert reference.config[field] == value, field


def test_seeds_decide_the_noise_of_dpm_and_nothing_in_ddim() -> None:
    latents = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)
    for name, noisy in zip(CLASSES, (False, True), strict=True):
        first, same, other = (
            ours(name).begin(10, np.random.default_rng(seed)).step(0, latents, latents) for seed in (1, 1, 2)
        )
        np.testing.assert_array_equal(first, same)
        assert (first != other).any() == noisy


def test_runs_of_one_scheduler_do_not_meet() -> None:
    rng = np.random.default_rng(0)
    latents, others = (rng.standard_normal(SHAPE, dtype=np.float32) for _ in range(2))
    scheduler = ours("CogVideoXDPMScheduler")
    alone = scheduler.begin(10, np.random.default_rng(1))
    expected = alone.step(1, latents, alone.step(0, latents, latents))
    run, beside = scheduler.begin(10, np.random.default_rng(1)), scheduler.begin(10, np.random.default_rng(2))
    moved = run.step(0, latents, latents)
    beside.step(0, others, others)
    np.testing.assert_array_equal(run.step(1, latents, moved), expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_outputs_of_any_precision_leave_float32_latents(dtype: type[np.floating[Any]]) -> None:
    latents = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)
    for name in CLASSES:
        other = ours(name).begin(10, np.random.default_rng(0)).step(0, latents.astype(dtype), latents.astype(dtype))
        full = ours(name).begin(10, np.random.default_rng(0)).step(0, latents, latents)
        assert other.dtype == np.float32
        np.testing.assert_allclose(other, full, atol=2e-3)


def test_the_other_class_on_the_same_checkpoint() -> None:
    config = {"_class_name": "CogVideoXDDIMScheduler", **BASE}
    other = scheduler_from_config(with_class(config, "dpm"))
    assert type(other) is type(ours("CogVideoXDPMScheduler"))
    np.testing.assert_array_equal(other.levels, scheduler_from_config(config).levels)
    assert type(scheduler_from_config(with_class(config, "ddim"))) is type(ours("CogVideoXDDIMScheduler"))
    assert config["_class_name"] == "CogVideoXDDIMScheduler"
    with pytest.raises(BadInput, match="unknown scheduler 'euler'; one of ddim, dpm"):
        with_class(config, "euler")


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", None, ["CogVideoXDDIMScheduler"]])
def test_refuses_other_classes(name: object) -> None:
    with pytest.raises(BundleError, match="_class_name is .* not one of CogVideoXDDIMScheduler, CogVideoXDPMScheduler"):
        scheduler_from_config({**BASE, "_class_name": name})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_train_timesteps", 1),
        ("num_train_timesteps", 1000.0),
        ("beta_start", "0.1"),
        ("beta_start", 0),
        ("beta_end", float("nan")),
        ("beta_schedule", "sigmoid"),
        ("trained_betas", [0.1, 0.2]),
        ("trained_betas", [2.0] * 1000),
        ("set_alpha_to_one", 1),
        ("steps_offset", True),
        ("prediction_type", "flow"),
        ("timestep_spacing", None),
        ("rescale_betas_zero_snr", "yes"),
        ("snr_shift_scale", 0.0),
    ],
)
def test_refuses_values_naming_the_field(field: str, value: object) -> None:
    with pytest.raises(BundleError, match=f"scheduler_config.json: {field} is .*, not .*; correct it"):
        ours(CLASSES[0], **{field: value})


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_refuses_step_counts_it_was_not_trained_for(spacing: str, steps: int) -> None:
    with pytest.raises(BadInput, match=f"{steps} steps is not a number from 1 to 1000"):
        ours(CLASSES[0], timestep_spacing=spacing).timesteps(steps)


def test_refuses_an_offset_past_the_last_timestep() -> None:
    scheduler = ours(CLASSES[0], steps_offset=1, **LEADING)
    assert scheduler.timesteps(500)[0] == 999
    with pytest.raises(BadInput, match="1000 steps and steps_offset 1 go past the last timestep, 999"):
        scheduler.timesteps(1000)


def test_refuses_to_divide_by_no_signal() -> None:
    with pytest.raises(BundleError, match="epsilon cannot start from zero SNR"):
        ours(CLASSES[0], prediction_type="epsilon").begin(10, np.random.default_rng(0))


def test_refuses_steps_out_of_order_and_other_shapes() -> None:
    latents = np.zeros(SHAPE, np.float32)
    run = ours(CLASSES[1]).begin(2, np.random.default_rng(0))
    with pytest.raises(ValueError, match="step 1 out of order: step 0 of 2"):
        run.step(1, latents, latents)
    with pytest.raises(ValueError, match="differ in shape"):
        run.step(0, latents[:, :1], latents)
    for i in range(2):
        latents = run.step(i, latents, latents)
    with pytest.raises(ValueError, match="step 2 out of order"):
        run.step(2, latents, latents)
