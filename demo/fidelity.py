"""Prompt fidelity: how often a clip shows what its prompt says, and how well its shape is drawn, as numbers in 0…1.

    python -m demo.fidelity PATH --prompts 64 --json

PATH is a checkpoint, rendered by diffusers in fp32, or a bundle, rendered by reelquant. Both get the same held-out
prompts and the same initial noise, so differences are those of the networks' numerics. A bundle of a few-step model has its own steps and guidance.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from demo.clips import ATTRIBUTES, FRAMES, SIZE, Scene, held_out_scenes, render
from demo.reader import score, shape_iou

if TYPE_CHECKING:
    from reelquant.runtime.pipeline import Pipeline

Pixels = NDArray[np.uint8]
# What precisions are compared at. The pipelines' own 6 saturates colours here, which costs the first frame between 2 and
# 3 dB, and edges (shape IoU); both are in the model cards.
GUIDANCE = 4.0
STEPS = 20
LATENTS = ((FRAMES - 1) // 4 + 1, 16, SIZE // 8, SIZE // 8)


@dataclass(frozen=True)
class Task:
    """One clip to render: the scene, its initial noise, and its first frame for image-to-video."""

    scene: Scene
    seed: int
    noise: NDArray[np.float32]
    image: Pixels


def tasks(prompts: int, seed: int = 0) -> list[Task]:
    """The same prompts, noise and first frames for everyone who asks with the same arguments."""
    made = []
    for i, scene in enumerate(held_out_scenes(prompts, seed)):
        rng = np.random.default_rng([seed, i])
        noise = rng.standard_normal(LATENTS, dtype=np.float32)
        made.append(Task(scene, seed * 10_000 + i, noise, render(scene, rng)[0]))
    return made


def renderer(
    path: Path, steps: int | None, guidance: float | None, engine: str
) -> tuple[str, Callable[[Task], Pixels]]:
    """The task (``t2v`` or ``i2v``) of a checkpoint or bundle, and a function that renders one clip with it. Steps and guidance that are
    None are those that precisions are compared at, or a few-step bundle's own.
    """
    if (path / "manifest.json").is_file():
        return _bundle_renderer(path, steps, guidance, engine)
    return _checkpoint_renderer(path, steps or STEPS, GUIDANCE if guidance is None else guidance)


def _bundle_renderer(
    path: Path, steps: int | None, guidance: float | None, engine: str
) -> tuple[str, Callable[[Task], Pixels]]:
    from reelquant.runtime import load_pipeline

    pipeline = load_pipeline(path, engine)
    if not pipeline.bundle.manifest.defaults.few_steps:
        steps, guidance = steps or STEPS, GUIDANCE if guidance is None else guidance
    return pipeline_renderer(pipeline, steps, guidance)


def pipeline_renderer(
    pipeline: Pipeline, steps: int | None, guidance: float | None
) -> tuple[str, Callable[[Task], Pixels]]:
    """As :func:`renderer`, with a bundle's pipeline; what is None is the bundle's own."""
    from reelquant.runtime import Request

    kind = pipeline.bundle.manifest.task

    def draw(task: Task) -> Pixels:
        image = task.image if kind == "i2v" else None
        request = Request(task.scene.caption, image, seed=task.seed, steps=steps, guidance=guidance, latents=task.noise)
        return pipeline.generate(request).frames

    return kind, draw


def _checkpoint_renderer(path: Path, steps: int, guidance: float) -> tuple[str, Callable[[Task], Pixels]]:
    import diffusers
    import torch

    index = json.loads((path / "model_index.json").read_text())
    kind = "i2v" if index["_class_name"] == "CogVideoXImageToVideoPipeline" else "t2v"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline: Any = getattr(diffusers, index["_class_name"]).from_pretrained(path, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def draw(task: Task) -> Pixels:
        given = {"image": Image.fromarray(task.image)} if kind == "i2v" else {}
        frames = pipeline(
            prompt=task.scene.caption,
            height=SIZE,
            width=SIZE,
            num_frames=FRAMES,
            num_inference_steps=steps,
            guidance_scale=guidance,
            latents=torch.from_numpy(task.noise)[None],
            generator=torch.Generator().manual_seed(task.seed),
            max_sequence_length=pipeline.transformer.config.max_text_seq_length,
            output_type="np",
            **given,
        ).frames[0]
        return np.asarray((frames * 255).round(), np.uint8)

    return kind, draw


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio of uint8 pictures in dB; infinite when they are equal."""
    error = float(((a.astype(np.float64) - b) ** 2).mean())
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def measure(kind: str, clips: Iterator[tuple[Task, Pixels]]) -> dict[str, Any]:
    """Score rendered clips: the share of right attributes, how well shapes are drawn (intersection over union with ideal ones, mean
    over clips), and for image-to-video the first frame's mean PSNR in dB.
    """
    right = {name: 0 for name in ATTRIBUTES}
    first_frame, drawn = [], []
    count = 0
    for task, clip in clips:
        for name, seen in score(task.scene, clip).items():
            right[name] += seen
        first_frame.append(psnr(clip[0], task.image))
        drawn.append(shape_iou(task.scene, clip))
        count += 1
    fidelity = {name: round(value / count, 4) for name, value in right.items()}
    fidelity["mean"] = round(sum(right.values()) / count / len(right), 4)
    found: dict[str, Any] = {"prompts": count, "fidelity": fidelity, "shape_iou": round(float(np.mean(drawn)), 4)}
    if kind == "i2v":
        found["first_frame_psnr"] = round(float(np.mean(first_frame)), 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="a checkpoint or a bundle")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--steps", type=int, help=f"default: {STEPS}, or those of a few-step bundle")
    parser.add_argument("--guidance", type=float, help=f"default: {GUIDANCE:g}, or that of a few-step bundle")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", default="openvino", help="for a bundle")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    kind, draw = renderer(arguments.path, arguments.steps, arguments.guidance, arguments.engine)

    def clips() -> Iterator[tuple[Task, Pixels]]:
        for i, task in enumerate(tasks(arguments.prompts, arguments.seed), 1):
            yield task, draw(task)
            if sys.stderr.isatty():
                print(f"\r{i}/{arguments.prompts} clips", end="", file=sys.stderr, flush=True)

    found = measure(kind, clips())
    if arguments.json:
        print(json.dumps(found))
    else:
        print("\n".join(f"{name:11} {value:.3f}" for name, value in found["fidelity"].items()))
        print(f"shape IoU   {found['shape_iou']:.3f}")
        if kind == "i2v":
            print(f"first frame {found['first_frame_psnr']:.1f} dB")


if __name__ == "__main__":
    main()
