"""Measure the demo checkpoints and write their model cards: ``python -m demo.cards [t2v] [i2v]``.

Every number in a card is measured here, with the commands that the card names.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from demo.train import TRAINING

CHECKPOINTS = Path("demo/checkpoints")
BARS = {"fidelity": 0.98, "shape_iou": 0.90, "reconstruction": 30.0, "first_frame": 28.0}
GUIDANCES = (6.0, 4.0)  # the pipelines' own, and the one that quantized bundles are compared at
HISTORY = """each session went on from the one before:
  1. On 2 CPU cores, the VAE and 1,700 steps of text-to-video, on smaller shapes at any place (`demo/` at commit b377a44).
  2. On 2 CPU cores, 600 steps on single frames of larger shapes at any place, then the stages "frames" and "full" of
     `demo/` at commit efcd6d7.
  3. On one NVIDIA H200 (driver 580.159.04, torch 2.11.0+cu130, diffusers 0.42.1), the last stages of `demo/` at commit
     4545f3b, each ended by a limit in seconds: text-to-video 279 s (about 3,300 steps of 256 clips), image-to-video,
     which grew from it, 160 s (about 1,900 steps of 256 clips), and the VAE's decoder alone 330 s (2,160 steps of 16
     clips).

  From nothing, the stages have not been run in one go."""

CARD = """---
license: apache-2.0
pipeline_tag: {tag}
library_name: diffusers
---
# reelquant demo, {kind}

A small CogVideoX ({parameters:.1f} M parameters in the transformer), trained from nothing on procedurally drawn clips of
one coloured shape moving over a plain background: 17 frames of 96×96 at 8 fps. It exists to show what a precision costs;
it can draw nothing else. Prompts look like *"{example}"*.

| measured on held-out prompts and seeds, diffusers fp32 | guidance 6 | guidance 4 | bar |
|---|---|---|---|
{rows}

- Fidelity, shape IoU{first_frame}: `{fidelity_command}`
  and the same with `--guidance 4`, 20 steps. Shape IoU is how well the shape is drawn: its intersection over union with
  the ideal shape of its own size at its own place.
- Seen and not measured: the small, still second shape of some prompts is drawn poorly. Text-to-video can give it a dark
  core, at guidance 6 more than at 4. No number above looks at it.
- Reconstruction: `{reconstruction_command}` (no guidance in it)
- Training: `python -m demo.train`, {training} in all, in three sessions;
  {history}
- Data: `demo/clips.py`, no other source. One combination of colour, shape, direction and background in eight was held
  out, and the prompts above are those.
- Weights are stored as float16, and were trained in bfloat16 autocast with float32 masters.
"""


def run(module: str, *arguments: str) -> tuple[str, dict[str, Any]]:
    """Run ``python -m module`` and return the command as a user would type it, and its JSON."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return " ".join(["python -m", module, *arguments]), json.loads(done.stdout)


def row(name: str, values: list[str], bar: str, unit: str = "") -> str:
    return f"| {name} | {' | '.join(values)} | {BARS[bar]}{unit} |"


def write_card(task: str) -> None:
    folder = CHECKPOINTS / task
    training = json.loads((folder / TRAINING).read_text())
    runs = [
        run("demo.fidelity", str(folder), "--prompts", "64", "--guidance", f"{guidance:g}", "--json")
        for guidance in GUIDANCES
    ]
    fidelity_command, found = runs[0]
    measured = [each for _, each in runs]
    reconstruction_command, rebuilt = run("demo.reconstruction", str(folder))
    rows = [
        row(f"{name}, {found['prompts']} prompts", [f"{each['fidelity'][name]:.3f}" for each in measured], "fidelity")
        for name in found["fidelity"]
    ]
    rows.append(row("shape IoU", [f"{each['shape_iou']:.3f}" for each in measured], "shape_iou"))
    if task == "i2v":
        drawn = [f"{each['first_frame_psnr']:.1f} dB" for each in measured]
        rows.append(row("first frame against the given image", drawn, "first_frame", " dB"))
    same = [f"{rebuilt['psnr']} dB"] * 2
    rows.append(row(f"VAE reconstruction, {rebuilt['clips']} clips", same, "reconstruction", " dB"))
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    minutes = ", ".join(f"{name} {seconds / 60:.0f} min" for name, seconds in training.items())
    card = CARD.format(
        tag="image-to-video" if task == "i2v" else "text-to-video",
        kind="image-to-video" if task == "i2v" else "text-to-video",
        parameters=weights.stat().st_size / 2e6,
        example="a red circle moves left past a small blue square on a black background",
        rows="\n".join(rows),
        fidelity_command=fidelity_command,
        first_frame=" and first frame" if task == "i2v" else "",
        reconstruction_command=reconstruction_command,
        training=minutes,
        history=HISTORY,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(
        json.dumps(
            {"checkpoint": task, "guidance": dict(zip(GUIDANCES, measured, strict=True)), "reconstruction": rebuilt}
        )
    )


def main() -> None:
    for task in sys.argv[1:] or ("t2v", "i2v"):
        write_card(task)


if __name__ == "__main__":
    main()
