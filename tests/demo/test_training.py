"""The demo's training, a few steps of it: cut off and run again it comes to the same weights, and a limit ends it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from demo import train_transformer, train_vae
from demo.training import Training

VAE_STAGES = (
    train_vae.Stage(steps=2, batch=2, frames=1, size=32, rate=2e-3),
    train_vae.Stage(steps=2, batch=1, frames=9, size=32, rate=6e-4, decoder_only=True),
)
STAGE = train_transformer.Stage("small", size=32, clips=32, steps=3, batch=2, rate=1e-3, frames=9)


class CutOff(Exception):
    pass


def cut_off(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """From now on training saves after every step, and breaks off in ``step`` of its second stage, or its only one."""
    run = Training.run

    def saving(self: Training, steps: int, rate: float, warmup: int, loss_of: object) -> None:
        def loss(at: int) -> torch.Tensor:
            self._save()
            if at == step and self.state["seconds"] > 0:
                raise CutOff
            return loss_of(at)  # type: ignore[operator]

        run(self, steps, rate, warmup, loss)

    monkeypatch.setattr(Training, "run", saving)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.allclose(value, theirs[name], rtol=0, atol=1e-6) for name, value in one.state_dict().items())


@pytest.mark.slow
def test_training_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, seconds = train_vae.train(tmp_path / "whole", VAE_STAGES)
    assert seconds > 0 and whole.config.scaling_factor > 0 and not whole.training
    with monkeypatch.context() as patched, pytest.raises(CutOff):
        cut_off(patched, 1)
        train_vae.train(tmp_path / "cut", VAE_STAGES)
    again, _ = train_vae.train(tmp_path / "cut", VAE_STAGES)
    assert same(again, whole)
    encoder = {name: value for name, value in whole.state_dict().items() if name.startswith("encoder")}
    further, _ = train_vae.train(tmp_path / "further", VAE_STAGES[1:], train_vae.train(tmp_path / "cut", VAE_STAGES)[0])
    assert all(torch.equal(further.state_dict()[name], value) for name, value in encoder.items())

    text, _ = train_transformer.train(whole, tmp_path / "whole", "t2v", (STAGE,), compiled=False)
    with monkeypatch.context() as patched, pytest.raises(CutOff):
        cut_off(patched, 2)
        train_transformer.train(whole, tmp_path / "cut", "t2v", (STAGE,), compiled=False)
    resumed, _ = train_transformer.train(whole, tmp_path / "cut", "t2v", (STAGE,), compiled=False)
    assert same(resumed, text)
    image, _ = train_transformer.train(
        whole, tmp_path / "whole", "i2v", (replace(STAGE, image=True),), text, compiled=False
    )
    assert image.transformer.config.in_channels == 2 * text.transformer.config.in_channels


@pytest.mark.slow
def test_a_limit_ends_the_training(tmp_path: Path) -> None:
    many = replace(VAE_STAGES[0], steps=10_000)
    _, seconds = train_vae.train(tmp_path, (many, many), limit=2)
    assert 2 <= seconds < 10
