"""Train the demo's 3D causal VAE: single frames first, then short crops, then the decoder alone on whole clips.

The loss is L1 + MSE on pixels in −1…1, plus a small KL term; the weights that are kept are an exponential moving
average. A single frame trains the sum of each causal convolution's temporal taps (the causal padding repeats the first
frame), which is why the cheap first stage carries over to clips.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from torch.nn import functional as F

from demo import architecture
from demo.clips import SIZE, random_scene, render
from demo.training import Training, ahead, device


@dataclass(frozen=True)
class Stage:
    steps: int
    batch: int
    frames: int
    size: int
    rate: float
    decoder_only: bool = False  # latents stay what they are, and with them every transformer trained on them


STAGES: tuple[Stage, ...] = (
    Stage(steps=1000, batch=16, frames=1, size=64, rate=2e-3),
    Stage(steps=1000, batch=4, frames=9, size=64, rate=6e-4),
    Stage(steps=3000, batch=16, frames=17, size=SIZE, rate=6e-4, decoder_only=True),  # a GPU's minutes
)
KL_WEIGHT = 1.25e-5  # of the mean KL divergence of one latent value


def batch_of_clips(stage: Stage, seed: int, number: int, step: int) -> torch.Tensor:
    """Random crops of freshly rendered clips as uint8 [batch, frames, size, size, 3], for one step of one stage."""
    rng = np.random.default_rng([seed, number, step])
    clips = []
    for _ in range(stage.batch):
        scene = random_scene(rng)
        clip = render(scene, rng, frames=stage.frames)
        y, x = rng.integers(0, SIZE - stage.size + 1, 2)
        clips.append(clip[:, y : y + stage.size, x : x + stage.size])
    return torch.from_numpy(np.stack(clips))


def mean_kl(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL divergence of N(mean, exp(logvar)) from N(0, 1), averaged over all latent values."""
    return 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()


def train(
    folder: Path,
    stages: tuple[Stage, ...] = STAGES,
    start: AutoencoderKLCogVideoX | None = None,
    seed: int = 0,
    limit: float | None = None,
) -> tuple[AutoencoderKLCogVideoX, float]:
    """Run (or resume) ``stages``; the state is saved in ``folder`` every 100 steps.

    ``start`` is a trained VAE to go on from, whose ``scaling_factor`` stays. After ``limit`` seconds of training it ends,
    whatever steps and stages were left. Returns the averaged model and the training time in seconds; without ``start``,
    the model's ``scaling_factor`` is set from its latents.
    """
    torch.manual_seed(seed)
    vae = start or AutoencoderKLCogVideoX(**architecture.VAE).to(device())
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(vae.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    ]
    training = Training(folder / "vae.pt", vae, optimizers, 0.995, limit)
    for stage in training.left(stages):
        number = training.state["stage"]
        vae.encoder.requires_grad_(not stage.decoder_only)
        places = range(training.state["step"], stage.steps)
        with closing(ahead(partial(batch_of_clips, stage, seed, number), places)) as clips:

            def loss_of(step: int, number: int = number, clips: Iterator[torch.Tensor] = clips) -> torch.Tensor:
                torch.manual_seed(int(np.random.default_rng([seed, number, step]).integers(2**31)))
                return reconstruction_loss(vae, next(clips))

            training.run(stage.steps, stage.rate, 50, loss_of)
    seconds = training.finish()
    if start is None:
        vae.register_to_config(scaling_factor=1 / latent_deviation(vae, seed))
    return vae, seconds


def reconstruction_loss(vae: AutoencoderKLCogVideoX, clips: torch.Tensor) -> torch.Tensor:
    """L1 + MSE on pixels in −1…1 and the KL term, of clips uint8 [batch, frames, height, width, 3]."""
    x = clips.to(device()).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    with torch.autocast(device().type, torch.bfloat16):
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample.float()
    return F.l1_loss(y, x) + F.mse_loss(y, x) + KL_WEIGHT * mean_kl(posterior.mean, posterior.logvar)


def load(checkpoint: Path) -> AutoencoderKLCogVideoX:
    """The VAE of a finished checkpoint, in fp32."""
    return AutoencoderKLCogVideoX.from_pretrained(checkpoint / "vae", torch_dtype=torch.float32).to(device()).eval()


def latent_deviation(vae: AutoencoderKLCogVideoX, seed: int, clips: int = 48) -> float:
    """Standard deviation of the latents of random clips; its inverse is the checkpoint's ``scaling_factor``."""
    rng = np.random.default_rng([seed, 0x57D])
    values = []
    for _ in range(clips):
        x = (
            torch.from_numpy(render(random_scene(rng), rng)).to(vae.device).permute(3, 0, 1, 2)[None].float() / 127.5
            - 1
        )
        with torch.no_grad():
            values.append(vae.encode(x).latent_dist.mode())
    return float(torch.cat(values).std())
