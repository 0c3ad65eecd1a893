"""Measure the demo checkpoints and write their model cards: ``python -m demo.cards [t2v] [i2v]``.

Every number in a card is measured here, with the commands that the card names.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from demo.fidelity import GUIDANCE
from demo.train import TRAINING

CHECKPOINTS = Path("demo/checkpoints")
BARS = {"fidelity": 0.85, "reconstruction": 30.0, "first_frame": 24.0}
HISTORY = """Made in two sessions: the
  first trained the VAE and 1,700 steps of t2v on smaller shapes at any place (`demo/` at commit b377a44); the second
  went on from there with `--start`: 600 steps on single frames of larger shapes at any place, then the stages
  "frames", "full" and "image" of `demo/` at commit efcd6d7. From nothing, the stages in `demo/train_transformer.py` have
  not been run in one go."""

CARD = """---
license: apache-2.0
pipeline_tag: {tag}
library_name: diffusers
---
# reelquant demo, {kind}

A small CogVideoX ({parameters:.1f} M parameters in the transformer), trained from nothing on procedurally drawn clips of
one coloured shape moving over a plain background: 17 frames of 96×96 at 8 fps. It exists to show what a precision costs;
it can draw nothing else. Prompts look like *"{example}"*.

| measured on held-out prompts and seeds, diffusers fp32 | value | bar |
|---|---|---|
{rows}

- Fidelity: `{fidelity_command}` (20 steps, guidance {guidance:g}{at_six})
- Reconstruction: `{reconstruction_command}`
- Training: `python -m demo.train` (seed 0): {training}. {history}
- Data: `demo/clips.py`, no other source. One combination of colour, shape, direction and background in eight was held
  out, and the prompts above are those.
- Weights are stored as float16, and were trained in bfloat16 autocast with float32 masters.
"""


def run(module: str, *arguments: str) -> tuple[str, dict[str, Any]]:
    """Run ``python -m module`` and return the command as a user would type it, and its JSON."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return " ".join(["python -m", module, *arguments]), json.loads(done.stdout)


def write_card(task: str) -> None:
    folder = CHECKPOINTS / task
    training = json.loads((folder / TRAINING).read_text())
    fidelity_command, found = run("demo.fidelity", str(folder), "--prompts", "64", "--json")
    reconstruction_command, rebuilt = run("demo.reconstruction", str(folder))
    rows = [f"| {name}, {found['prompts']} prompts | {value:.3f} | {BARS['fidelity']} |"
            for name, value in found["fidelity"].items()]  # fmt: skip
    rows.append(
        f"| VAE reconstruction, {rebuilt['clips']} clips | {rebuilt['psnr']} dB | {BARS['reconstruction']} dB |"
    )
    if task == "i2v":
        rows.append(
            f"| first frame against the given image | {found['first_frame_psnr']} dB | {BARS['first_frame']} dB |"
        )
    at_six = ""
    if task == "i2v":
        _, plain = run("demo.fidelity", str(folder), "--prompts", "64", "--guidance", "6", "--json")
        at_six = f"; at the pipelines' own 6 the first frame is {plain['first_frame_psnr']} dB"
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    minutes = ", ".join(f"{name} {seconds / 60:.0f} min" for name, seconds in training.items())
    card = CARD.format(
        tag="image-to-video" if task == "i2v" else "text-to-video",
        kind="image-to-video" if task == "i2v" else "text-to-video",
        parameters=weights.stat().st_size / 2e6,
        example="a red circle moves left past a small blue square on a black background",
        rows="\n".join(rows),
        fidelity_command=fidelity_command,
        guidance=GUIDANCE,
        at_six=at_six,
        reconstruction_command=reconstruction_command,
        training=f"{minutes} on 2 CPU cores",
        history=HISTORY,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(json.dumps({"checkpoint": task, **found, "reconstruction": rebuilt}))


def main() -> None:
    for task in sys.argv[1:] or ("t2v", "i2v"):
        write_card(task)


if __name__ == "__main__":
    main()
