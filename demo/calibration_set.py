"""Write ``calib_data/demo``: captions of training scenes (never of held-out ones), and each scene's first frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from demo.clips import random_scene, render

COUNT, SEED = 32, 7
HEADER = "# Captions of the demo's training scenes, by python -m demo.calibration_set (seed {seed}). Apache-2.0.\n"


def main(folder: Path = Path("calib_data/demo")) -> None:
    rng = np.random.default_rng([SEED, 0xCA11B])
    scenes = [random_scene(rng) for _ in range(COUNT)]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for i, scene in enumerate(scenes):
        Image.fromarray(render(scene, rng)[0]).save(folder / "images" / f"{i:02}.png", optimize=True)
    lines = "".join(f"{scene.caption}\n" for scene in scenes)
    (folder / "prompts.txt").write_text(HEADER.format(seed=SEED) + lines, encoding="utf-8")


if __name__ == "__main__":
    main()
