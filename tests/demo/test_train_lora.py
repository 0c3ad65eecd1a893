"""The few-step LoRA's training: it takes our sampler's own steps, and what it writes is what the export merges."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from demo import train_lora
from demo.train_lora import FILE, TIMESTEPS, Student, losses, record, save, train
from reelquant.export.checkpoint import Checkpoint
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.models.cogvideox.schedulers import Scheduler, scheduler_from_config
from reelquant.runtime.pipeline import Pipeline
from tests.conftest import CHECKPOINTS, BundleMaker

T2V = CHECKPOINTS / "t2v"
SHAPE = (2, 5, 16, 12, 12)


@pytest.fixture(scope="module")
def scheduler() -> Scheduler:
    config = json.loads((T2V / "scheduler" / "scheduler_config.json").read_text())
    return scheduler_from_config(config).at(TIMESTEPS)


@pytest.fixture
def student(scheduler: Scheduler) -> Student:
    return Student(T2V, scheduler.levels, compiled=False)


def test_a_step_is_the_samplers(student: Student, scheduler: Scheduler) -> None:
    """With the factors at zero, as they begin, the student is the demo itself."""
    rng = np.random.default_rng(0)
    latents, text = rng.standard_normal(SHAPE, dtype=np.float32), torch.zeros(2, 24, 128)
    run = scheduler.begin(4, rng)
    for i, timestep in enumerate(TIMESTEPS):
        given = torch.from_numpy(latents)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            at = torch.full((2,), timestep)
            velocity = student.network(given, text, at, image_rotary_emb=student._rotary, return_dict=False)[0]
        with torch.no_grad():
            found = student.step(i, given, text).numpy()
        latents = run.step(i, velocity.float().numpy(), latents)
        np.testing.assert_allclose(found, latents, rtol=0, atol=1e-5 * np.abs(latents).max())


def test_losses_are_of_the_clean_latents(student: Student) -> None:
    """Of a step from the teacher's latents: how far from the clean latents that lead where the teacher went."""
    states, text = torch.randn(2, 5, *SHAPE[1:]), torch.zeros(2, 24, 128)

    class Forced:
        def random(self, count: int) -> np.ndarray:
            return np.zeros(count)

    with torch.no_grad():
        found = list(losses(student, states, text, Forced()))  # type: ignore[arg-type]
        for i in range(4):
            keep, gain = student.move(i)
            wanted = (states[:, i + 1] - keep * states[:, i]) / gain
            made = (student.step(i, states[:, i], text) - keep * states[:, i]) / gain
            torch.testing.assert_close(found[i], F.mse_loss(made, wanted), rtol=1e-3, atol=0)


def test_what_is_written_is_what_the_export_merges(student: Student, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for factor in student.factors.parameters():
        factor.data = (torch.randn(factor.shape, generator=generator) / 16).half().float()
    save(student, tmp_path / FILE)
    weights = Checkpoint.open(str(T2V), [str(tmp_path / FILE)]).network("transformer").weights
    linears = {name: each for name, each in student.network.named_modules() if isinstance(each, train_lora.LowRank)}
    assert len(linears) == 6 * 8  # four of attention, two of the feed-forward, two norms'
    for name, low_rank in linears.items():
        wanted = low_rank.linear.weight + low_rank.lora_B.weight @ low_rank.lora_A.weight
        np.testing.assert_allclose(weights[f"{name}.weight"].read(), wanted.detach().numpy(), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_training_goes_on_where_it_stopped(
    scheduler: Scheduler, demo_bundle: BundleMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_lora, "CHUNK", 2)
    monkeypatch.setattr(train_lora, "BATCH", 2)
    pipeline = Pipeline(demo_bundle("t2v", "fp32"), EngineOptions("openvino"))
    first = record(pipeline, None, tmp_path / "ways", clips=2, seed=0)
    data = record(pipeline, None, tmp_path / "ways", clips=4, seed=0)
    assert data["states"].shape == (4, 5, *SHAPE[1:]) and torch.equal(data["states"][:2], first["states"])
    assert data["states"][:, -1].float().std() > 0.1 and data["text"].shape == (4, 24, 128)

    def trained(state: str, *steps: int) -> Student:
        for count in steps:
            made = Student(T2V, scheduler.levels, compiled=False)
            monkeypatch.setattr(train_lora, "RATE", 1e-3)
            train(made, data, tmp_path / state, count)
        return made

    whole = trained("whole.pt", 2)
    assert any(pair[1].weight.abs().max() > 0 for pair in whole.factors.values())
    again = trained("whole.pt", 2)  # nothing is left to do
    for one, other in zip(whole.factors.parameters(), again.factors.parameters(), strict=True):
        assert torch.equal(one, other)
