"""A checkpoint of a public variant's full size through the whole road on a CPU, and its INT8 bundle against its fp32 one.

    python -m benchmarks.full_size --like cogvideox-2b --json

Random weights, T5-XXL in INT8, a small clip. Every stage is a command of its own, as a user would run it, and is
reported with its seconds and its peak memory. What is made is kept in --work; a second run takes up where one stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.random_checkpoint import write_checkpoint
from benchmarks.variants import VARIANTS
from reelquant.runtime.media.video import read_clip
from reelquant.runtime.relative_l2 import relative_l2
from reelquant.runtime.sampling.latents import SavedLatents
from reelquant.runtime.sizes import Size

PROMPT = "a girl in a red coat walks through the snow"


def run(*arguments: str | Path) -> dict[str, Any]:
    """Run ``reelquant`` in a process of its own: {"seconds", "peak_rss_bytes"}.

    Raises:
        SystemExit: it failed; it has said why.
    """
    began = time.monotonic()
    command = [str(Path(sys.executable).with_name("reelquant")), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return {"seconds": round(time.monotonic() - began, 1), "peak_rss_bytes": usage.ru_maxrss * 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--like", choices=VARIANTS, default="cogvideox-2b")
    parser.add_argument("--layers", type=int, help="transformer blocks (default: the variant's)")
    parser.add_argument("--size", default="9x256x256")
    parser.add_argument("--steps", default="2")
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--work", type=Path, default=Path("build/random"), help="where everything is kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    variant, name = VARIANTS[arguments.like], arguments.like
    if arguments.layers:
        variant, name = variant.layers(arguments.layers), f"{name}-{arguments.layers}"
    checkpoint, work, int8 = (arguments.work / f"{name}{suffix}" for suffix in ("", "-work", "-int8"))
    if not (checkpoint / "model_index.json").exists() or not any((checkpoint / "text_encoder").glob("*.safetensors")):
        shutil.rmtree(checkpoint, ignore_errors=True)
        write_checkpoint(checkpoint, variant)

    stages: dict[str, Any] = {}
    size = ["--size", arguments.size, "--text-weights", "int8"]
    calibration = ["--calibration-prompts", "1", "--calibration-steps", arguments.steps]
    engine = ["--engine", arguments.engine]
    stages["export int8"] = run(
        "export", checkpoint, int8, "--precision", "int8", "--work", work, "--replace", *size, *calibration, *engine
    )
    embeddings = work / "embeddings"
    stages["embed"] = run("embed", int8, embeddings, PROMPT, *engine)
    clips, latents = {}, {}
    for precision, bundle in (("fp32", work / "fp32"), ("int8", int8)):
        clip, kept = work / f"{precision}.npy", work / f"{precision}.npz"
        stages[f"generate {precision}"] = run(
            "generate", bundle, PROMPT, "-o", clip, "--latents", kept, "--embeddings", embeddings,
            "--steps", arguments.steps, "--seed", "7", *engine,
        )  # fmt: skip
        latents[precision], clips[precision] = SavedLatents.load(kept).values, read_clip(clip).frames
    found = {
        "checkpoint": name,
        "size": [Size.parse(arguments.size).frames, *latents["int8"].shape],
        "finite": bool(np.isfinite(latents["int8"]).all()),
        "latents_relative_l2": relative_l2(latents["int8"], latents["fp32"]),
        "clip": list(clips["int8"].shape),
        "stages": stages,
    }
    if arguments.json:
        print(json.dumps(found))
        return
    for stage, row in stages.items():
        print(f"{stage:14} {row['seconds']:8.1f} s {row['peak_rss_bytes'] / 1e9:6.2f} GB")
    print(f"latents, int8 against fp32: relative L2 {found['latents_relative_l2']:.2e}")


if __name__ == "__main__":
    main()
