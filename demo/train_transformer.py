"""Train the demo's transformer and T5 encoder together on the VAE's latents; text-to-video, then image-to-video.

v-prediction on the checkpoint's own noise schedule, every tenth prompt empty (for classifier-free guidance), averaged
weights. Small clips come first (half the tokens; the rotary grid is stretched over the same extent at every size), then
single frames (a quarter of the tokens), on which the model learns to draw; whole clips only then.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from numpy.typing import NDArray
from torch.nn import functional as F
from transformers import T5Config, T5EncoderModel

from demo import architecture
from demo.clips import FRAMES, SIZE, random_scene, render
from demo.training import Progress, Training, ahead, device


@dataclass(frozen=True)
class Stage:
    name: str
    size: int
    clips: int
    steps: int
    batch: int
    rate: float
    frames: int = FRAMES
    image: bool = False


# Made for 2 CPU cores, but for the last of each: a GPU's minutes, a CPU's day.
LONG = 16_384
STAGES: tuple[Stage, ...] = (
    Stage("small", size=64, clips=4096, steps=1000, batch=64, rate=1e-3),
    Stage("frames", size=SIZE, clips=8192, steps=600, batch=128, rate=1.5e-3, frames=1),
    Stage("full", size=SIZE, clips=2560, steps=900, batch=48, rate=1e-3),
    Stage("long", size=SIZE, clips=LONG, steps=8000, batch=256, rate=8e-4),
)
IMAGE_STAGES: tuple[Stage, ...] = (Stage("image", size=SIZE, clips=LONG, steps=5000, batch=256, rate=8e-4, image=True),)
EMPTY_PROMPTS = 0.1
ENCODED_AT_ONCE = 32  # clips
# Place, direction and shape are settled while the clip is still mostly noise: t = u**SKEW draws those steps more often.
SKEW = 0.6


class TextAndTransformer(torch.nn.Module):
    """The two networks that learn together."""

    def __init__(self, in_channels: int, vocabulary: int) -> None:
        super().__init__()
        self.text = T5EncoderModel(T5Config(vocab_size=vocabulary, **architecture.TEXT_ENCODER))
        config = {**architecture.TRANSFORMER, "in_channels": in_channels}
        self.transformer = CogVideoXTransformer3DModel(**config)

    def forward(
        self, ids: torch.Tensor, latents: torch.Tensor, timestep: torch.Tensor, rotary: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        embeds = self.text(ids).last_hidden_state
        out: torch.Tensor = self.transformer(latents, embeds, timestep, image_rotary_emb=rotary, return_dict=False)[0]
        return out


def encode_clips(vae: AutoencoderKLCogVideoX, stage: Stage, folder: Path, seed: int) -> dict[str, torch.Tensor]:
    """Render and encode the stage's clips once; cached in ``folder``. Latents are unscaled, float16.

    Returns, on the training device, ``ids`` [clips, tokens], ``latents`` [clips, frames, channels, h, w] and ``image``
    [clips, channels, h, w], the last one the first frame encoded on its own, as the image-to-video pipeline does.
    """
    cache = folder / f"latents-{stage.size}x{stage.frames}x{stage.clips}.pt"
    if cache.exists():
        return dict(torch.load(cache, weights_only=True, map_location=device()))
    tokenizer = architecture.build_tokenizer()
    tokenizer.enable_padding(length=architecture.TEXT_TOKENS)
    progress = Progress(f"encode {stage.name}")
    ids, latents, images = [], [], []
    places = range(stage.clips // ENCODED_AT_ONCE)
    for place, (captions, clips) in enumerate(ahead(partial(drawn, stage, seed), places), 1):
        x = torch.from_numpy(clips).to(device()).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        with torch.no_grad(), torch.autocast(device().type, torch.bfloat16):
            latents.append(vae.encode(x).latent_dist.sample().permute(0, 2, 1, 3, 4).half())
            images.append(vae.encode(x[:, :, :1]).latent_dist.sample()[:, :, 0].half())
        ids += [encoding.ids for encoding in tokenizer.encode_batch(captions)]
        progress({"stage": 0, "step": place}, len(places), 0.0)
    data = {"ids": torch.tensor(ids, device=device()), "latents": torch.cat(latents), "image": torch.cat(images)}
    torch.save(data, cache)
    return data


def drawn(stage: Stage, seed: int, place: int) -> tuple[list[str], NDArray[np.uint8]]:
    """The captions and clips of one place among the stage's, ``ENCODED_AT_ONCE`` of them."""
    rng = np.random.default_rng([seed, stage.size, stage.frames, 0xDA7A, place])
    scenes = [random_scene(rng) for _ in range(ENCODED_AT_ONCE)]
    clips = np.stack([render(scene, rng, stage.frames, stage.size, stage.size) for scene in scenes])
    return [scene.caption for scene in scenes], clips


def rotary_tables(size: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The tables the pipelines make for this size: a grid stretched over the trained one."""
    base, grid = SIZE // 16, size // 16
    cos, sin = get_3d_rotary_pos_embed(64, ((0, 0), (base, base)), (grid, grid), frames)
    return cos.to(device()), sin.to(device())


def train(
    vae: AutoencoderKLCogVideoX,
    folder: Path,
    name: str,
    stages: tuple[Stage, ...],
    start: TextAndTransformer | None = None,
    seed: int = 0,
    compiled: bool = True,
    limit: float | None = None,
) -> tuple[TextAndTransformer, float]:
    """Run (or resume) ``stages``; the state is saved in ``folder`` every 100 steps.

    ``start`` is the text-to-video model to go on from; image-to-video grows from it, with zeros for the image's
    channels. After ``limit`` seconds of training it ends, whatever steps and stages were left. Returns the averaged model
    and the training time in seconds.
    """
    torch.manual_seed(seed)
    vocabulary = architecture.build_tokenizer().get_vocab_size()
    model = TextAndTransformer(32 if any(stage.image for stage in stages) else 16, vocabulary).to(device())
    if start:
        grow_input(model, start)
    schedule = CogVideoXDDIMScheduler(**architecture.SCHEDULER)
    alphas = schedule.alphas_cumprod.float().to(device())
    optimizers = split_optimizers(model)
    training = Training(folder / f"{name}.pt", model, optimizers, 0.997, limit)
    forward = torch.compile(model) if compiled else model
    for stage in training.left(stages):
        data = encode_clips(vae, stage, folder, seed)
        rotary = rotary_tables(stage.size, data["latents"].shape[1])
        place = [seed, training.state["stage"]]

        def loss_of(
            step: int, stage: Stage = stage, data: Any = data, rotary: Any = rotary, place: list[int] = place
        ) -> torch.Tensor:
            rng = np.random.default_rng([*place, step, len(name)])
            torch.manual_seed(int(rng.integers(2**31)))
            return step_loss(forward, data, alphas, rotary, stage, rng, vae.config.scaling_factor)

        training.run(stage.steps, stage.rate, 100, loss_of)
    return model, training.finish()


def step_loss(
    forward: Any,
    data: dict[str, torch.Tensor],
    alphas: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    stage: Stage,
    rng: np.random.Generator,
    scaling: float,
) -> torch.Tensor:
    """Mean squared error of the predicted velocity ``sqrt(a)·noise − sqrt(1−a)·x0`` (Salimans & Ho 2022)."""
    rows = torch.from_numpy(rng.integers(0, stage.clips, stage.batch)).to(device())
    x0 = data["latents"][rows].float() * scaling
    empty = torch.from_numpy(rng.random(stage.batch) < EMPTY_PROMPTS).to(device())
    ids = data["ids"][rows]
    ids = torch.where(empty[:, None], F.pad(torch.ones_like(ids[:1, :1]), (0, ids.shape[1] - 1)), ids)  # </s>, padding
    # One timestep from each of `batch` equal strata: the same coverage in every step, so a steadier gradient.
    place = (np.arange(stage.batch) + rng.random(stage.batch)) / stage.batch
    timestep = torch.from_numpy((place**SKEW * len(alphas)).astype(np.int64)).to(device())
    a = alphas[timestep].view(-1, 1, 1, 1, 1)
    noise = torch.randn_like(x0)
    noisy = a.sqrt() * x0 + (1 - a).sqrt() * noise
    if stage.image:
        image = torch.zeros_like(x0)
        image[:, 0] = data["image"][rows].float() * scaling
        noisy = torch.cat([noisy, image], 2)
    with torch.autocast(device().type, torch.bfloat16):
        velocity = forward(ids, noisy, timestep, rotary).float()
    return F.mse_loss(velocity, a.sqrt() * noise - (1 - a).sqrt() * x0)


def split_optimizers(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the blocks' matrices, AdamW for embeddings, norms, biases and the ends."""

    def hidden(name: str, parameter: torch.nn.Parameter) -> bool:
        return parameter.ndim == 2 and "block" in name and "embed" not in name and "relative" not in name

    matrices = [p for n, p in model.named_parameters() if hidden(n, p)]
    others = [p for n, p in model.named_parameters() if not hidden(n, p)]
    return [
        torch.optim.Muon(matrices, lr=1e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def grow_input(model: TextAndTransformer, start: TextAndTransformer) -> None:
    """Copy ``start``'s weights; the patch embedding's extra input channels begin at zero."""
    weights = dict(start.state_dict())
    key = "transformer.patch_embed.proj.weight"
    missing = model.state_dict()[key].shape[1] - weights[key].shape[1]
    weights[key] = F.pad(weights[key], (0, 0, 0, 0, 0, missing))
    model.load_state_dict(weights)


def load(checkpoint: Path) -> TextAndTransformer:
    """Text encoder and transformer of a finished text-to-video checkpoint, in fp32."""
    model = TextAndTransformer(architecture.TRANSFORMER["in_channels"], architecture.build_tokenizer().get_vocab_size())
    model.text = T5EncoderModel.from_pretrained(checkpoint / "text_encoder", dtype=torch.float32)
    model.transformer = CogVideoXTransformer3DModel.from_pretrained(
        checkpoint / "transformer", torch_dtype=torch.float32
    )
    model.to(device())
    return model
