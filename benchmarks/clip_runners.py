"""What makes the clips that benchmarks.cpu_clip times: a process of its own, which imports what its runner needs and nothing else.

    python -m benchmarks.clip_runners RUNNER ASKED CLIPS OUT.npy

RUNNER and ASKED are JSON; after each clip a line of JSON says what it took.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.media.video import Clip
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.request import Request
from reelquant.runtime.sizes import Size


def diffusers_clip(checkpoint: Path, runner: str, asked: dict[str, Any], out: Path, clips: int) -> None:
    began = time.monotonic()
    import torch

    from benchmarks.same_noise import load_diffusers

    dtype = torch.bfloat16 if runner.endswith("bf16") else torch.float32
    pipe = load_diffusers(checkpoint, dtype)
    if "compiled" in runner:
        pipe.transformer = torch.compile(pipe.transformer)
    for number in range(clips):
        if number:
            began = time.monotonic()
        first: list[float] = []

        def step(pipe: Any, i: int, t: Any, kept: Any, first: list[float] = first) -> Any:
            first.append(time.monotonic())
            return kept

        size = Size.parse(asked["size"])
        frames = pipe(
            asked["prompt"], num_inference_steps=asked["steps"], guidance_scale=asked["guidance"], height=size.height,
            width=size.width, num_frames=size.frames, generator=torch.Generator().manual_seed(0), output_type="np",
            callback_on_step_end=step,
        ).frames[0]  # fmt: skip
        Clip(np.rint(np.asarray(frames) * 255).astype(np.uint8), 8).save(out)
        say(number, began, first[0] - began)


def our_clip(bundle: Path, asked: dict[str, Any], schedule: str | None, out: Path, clips: int) -> None:
    began = time.monotonic()
    size = Size.parse(asked["size"])
    pipeline = Pipeline(Bundle.open(bundle), size=size)
    request = Request(
        asked["prompt"], seed=0, steps=asked["steps"], guidance=asked["guidance"], frames=size.frames,
        height=size.height, width=size.width, schedule=schedule,
    )  # fmt: skip
    for number in range(clips):
        if number:
            began = time.monotonic()
        first: list[float] = []

        def heard(stage: str, done: int, total: int, first: list[float] = first) -> None:
            if stage == "denoise" and not first:
                first.append(time.monotonic())

        made = pipeline.render(request, out, on_step=heard)
        say(number, began, first[0] - began, forwards=made.provenance["forwards"], engine=pipeline.engine.name)


def say(number: int, began: float, first_step: float, **more: Any) -> None:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    facts = {"clip": number, "seconds": time.monotonic() - began, "first_step": first_step, "peak_rss_bytes": peak}
    print(json.dumps({**facts, **more}), flush=True)


def main() -> None:
    runner, asked, clips, out = json.loads(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    if "checkpoint" in runner:
        diffusers_clip(Path(runner["checkpoint"]), runner["name"], asked, out, clips)
    else:
        our_clip(Path(runner["bundle"]), asked, runner.get("schedule"), out, clips)


if __name__ == "__main__":
    main()
