"""Distil the demo's text-to-video model into four unguided steps, as a LoRA: ``python -m demo.train_lora``. Resumable.

The teacher is the demo's fp32 bundle with guidance, on DDIM, which adds no noise: from a noise and a prompt it goes one way, and the
latents before each of ``TIMESTEPS`` and at the end of that way are recorded. The student is the same transformer with low-rank
additions to its blocks' linears. It goes from one of these timesteps to the next in one unguided step, and learns to land where the
teacher landed: from the teacher's latents half of the time, else from its own, so that its errors do not pile up.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import CogVideoXTransformer3DModel
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from demo.clips import random_scene
from demo.fidelity import GUIDANCE
from demo.train_transformer import rotary_tables
from demo.training import Progress, Training, device
from reelquant.runtime.files.atomic import partial_file
from reelquant.runtime.pipeline import Pipeline, load_pipeline
from reelquant.runtime.request import Request
from reelquant.runtime.sampling.denoiser import Denoiser
from reelquant.runtime.sampling.follower import Follower
from reelquant.runtime.sampling.stepper import Stepper, Work

Floats = NDArray[np.float32]

FILE = "pytorch_lora_weights.safetensors"  # as diffusers calls it
TIMESTEPS = (999, 859, 659, 399)  # of the teacher's 50
RANK = 16
CHUNK = 64  # clips of a file of recordings
BATCH, STEPS, RATE = 16, 200, 2e-3
TEACHER_FORCED = 0.5


class LowRank(nn.Module):
    """A linear that stays as it is, and a product of two thin matrices that is added to it and begins at zero."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.lora_A = nn.Linear(linear.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, linear.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.linear(x) + self.lora_B(self.lora_A(x))
        return made


def record(pipeline: Pipeline, schedule: str | None, folder: Path, clips: int, seed: int) -> dict[str, Tensor]:
    """The teacher's ways of ``clips`` clips, in files of ``CHUNK`` in ``folder``; those that are missing are made now.

    Returns ``text`` [clips, text_tokens, text_width] and ``states`` [clips, TIMESTEPS + 1, frames, channels, h, w], the noise
    first and the final latents last, as float16.
    """
    folder.mkdir(parents=True, exist_ok=True)
    progress, files = Progress("record"), sorted(folder.glob("*.npz"))
    missing = (file for place in count() if not (file := folder / f"{place:04}.npz").exists())
    while len(files) < clips // CHUNK:
        file = next(missing)
        rng = np.random.default_rng([seed, 0x10AA, int(file.stem)])
        made = [_way(pipeline, schedule, random_scene(rng).caption, int(rng.integers(2**32))) for _ in range(CHUNK)]
        with partial_file(file) as temporary, temporary.open("wb") as handle:
            text, states = (np.stack(each).astype(np.float16) for each in zip(*made, strict=True))
            np.savez(handle, text=text, states=states)
        files.append(file)
        progress({"stage": 0, "step": len(files)}, clips // CHUNK, 0.0)
    loaded = [dict(np.load(file)) for file in files]
    return {name: torch.from_numpy(np.concatenate([each[name] for each in loaded])) for name in ("text", "states")}


def _way(pipeline: Pipeline, schedule: str | None, prompt: str, seed: int) -> tuple[Floats, Floats]:
    """The prompt's embedding, and the latents before each of ``TIMESTEPS`` and after the last step."""
    resolved = pipeline.resolve(Request(prompt, seed=seed, guidance=GUIDANCE, schedule=schedule))
    made = pipeline.prepare(resolved)
    stepper = Stepper(Denoiser(pipeline.transformer(), made.text, fixed=made.fixed), made, Work())
    step = Follower(stepper, resolved.schedule).step if resolved.schedule else stepper.step
    latents, states = made.latents, []
    for i, timestep in enumerate(map(int, made.run.timesteps)):
        if timestep in TIMESTEPS:
            states.append(latents)
        latents = step(i, latents)
    return made.text[1], np.stack([*states, latents])


class Student(nn.Module):
    """The transformer with low-rank additions to all linears of its blocks, and the four steps that it takes."""

    def __init__(self, checkpoint: Path, levels: Floats, compiled: bool, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        network = CogVideoXTransformer3DModel.from_pretrained(checkpoint / "transformer", torch_dtype=torch.float32)
        self.network = network.requires_grad_(False).to(device())
        self.factors = nn.ModuleDict()
        linears = [(name, each) for name, each in network.named_modules() if isinstance(each, nn.Linear)]
        for name, linear in linears:
            if name.startswith("transformer_blocks."):
                parent, _, leaf = name.rpartition(".")
                added = LowRank(linear, RANK).to(device())
                setattr(network.get_submodule(parent), leaf, added)
                self.factors[name.replace(".", "|")] = nn.ModuleList([added.lora_A, added.lora_B])
        self._levels = [float(levels[timestep]) for timestep in TIMESTEPS] + [1.0]
        self._rotary = rotary_tables(network.config.sample_height * 8, 5)
        self._run: Any = torch.compile(network) if compiled else network

    def step(self, i: int, latents: Tensor, text: Tensor) -> Tensor:
        """The latents after step ``i``: DDIM's eq. 12 with the velocity that the network predicts."""
        timestep = torch.full((len(latents),), TIMESTEPS[i], device=device())
        with torch.autocast(device().type, torch.bfloat16):
            made = self._run(latents, text, timestep, image_rotary_emb=self._rotary, return_dict=False)
        velocity = made[0].float()
        keep, gain = self.move(i)
        level = self._levels[i]
        moved: Tensor = keep * latents + gain * (level**0.5 * latents - (1 - level) ** 0.5 * velocity)
        return moved

    def move(self, i: int) -> tuple[float, float]:
        """Of the latents and of the clean latents, what step ``i`` takes."""
        level, target = self._levels[i : i + 2]
        keep = ((1 - target) / (1 - level)) ** 0.5
        return keep, target**0.5 - level**0.5 * keep


def losses(student: Student, states: Tensor, text: Tensor, rng: np.random.Generator) -> Iterator[Tensor]:
    """Of each step: how far from the teacher's the clean latents are that it moved towards, squared."""
    latents = states[:, 0]
    for i in range(len(TIMESTEPS)):
        forced = torch.from_numpy(rng.random(len(states)) < TEACHER_FORCED).to(device()).view(-1, 1, 1, 1, 1)
        latents = student.step(i, torch.where(forced, states[:, i], latents), text)
        yield F.mse_loss(latents, states[:, i + 1]) / student.move(i)[1] ** 2


def train(
    student: Student, data: Mapping[str, Tensor], state: Path, steps: int, seed: int = 0, limit: float | None = None
) -> float:
    """Train, or go on with what is in the file ``state``; the student has averaged factors then. Returns the seconds that it took."""
    optimizer = torch.optim.AdamW(student.factors.parameters(), lr=RATE, weight_decay=0.0)
    training = Training(state, student.factors, [optimizer], 0.98, limit, every=10)

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng([seed, step, 4])
        rows = torch.from_numpy(rng.integers(0, len(data["states"]), BATCH))
        states, text = (data[name][rows].float().to(device()) for name in ("states", "text"))
        return torch.stack(list(losses(student, states, text, rng))).sum()

    for _ in training.left([None]):
        training.run(steps, RATE, 20, loss_of)
    return training.finish()


def save(student: Student, file: Path) -> None:
    """Write the factors as diffusers' own LoRA files are: float16, ``transformer.MODULE.lora_A.weight``; scale 1."""
    tensors = {
        f"transformer.{name.replace('|', '.')}.lora_{which}.weight": linear.weight.detach().half().contiguous().cpu()
        for name, pair in student.factors.items()
        for which, linear in zip("AB", pair, strict=True)
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with partial_file(file) as temporary:
        save_file(tensors, temporary, {"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("demo/checkpoints/t2v"))
    parser.add_argument("--bundle", type=Path, default=Path("build/demo-t2v-fp32"), help="the teacher")
    parser.add_argument("--schedule", help="one of the teacher's, so that recording takes fewer forwards")
    parser.add_argument("--out", type=Path, default=Path("demo/checkpoints/t2v-4step"))
    parser.add_argument("--work", type=Path, default=Path("build/train"), help="recordings and state, for resuming")
    parser.add_argument("--clips", type=int, default=3072, help="ways of the teacher to record")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, help="seconds after which the training ends")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads")
    parser.add_argument("--eager", action="store_true", help="do not compile (no C++ compiler needed, slower)")
    parser.add_argument("--record-only", action="store_true")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    pipeline = load_pipeline(arguments.bundle, threads=arguments.threads)
    data = record(pipeline, arguments.schedule, arguments.work / "ways", arguments.clips, arguments.seed)
    if arguments.record_only:
        return
    levels = pipeline.model.scheduler("ddim").levels
    del pipeline
    student = Student(arguments.checkpoint, levels, not arguments.eager, arguments.seed)
    seconds = train(student, data, arguments.work / "t2v-4step.pt", STEPS, arguments.seed, arguments.limit)
    save(student, arguments.out / FILE)
    (arguments.out / "training.json").write_text(json.dumps({"lora": round(seconds)}) + "\n")
    print(f"{arguments.out} written; training took {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
