"""The README's picture: the same clip at every precision, one row each. ``python -m benchmarks.picture``"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from demo.fidelity import GUIDANCE, renderer, tasks

PRECISIONS = ("fp32", "int8", "fp8")
SHOWN = (0, 4, 8, 12, 16)  # frames
LABEL = 44  # pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundles", type=Path, default=Path("build"))
    parser.add_argument("--number", type=int, default=6, help="which held-out prompt")
    parser.add_argument("--out", type=Path, default=Path("docs/precisions.png"))
    arguments = parser.parse_args()
    task = tasks(arguments.number + 1)[-1]
    blocks = []
    for kind in ("t2v", "i2v"):
        for precision in PRECISIONS:
            _, draw = renderer(arguments.bundles / f"demo-{kind}-{precision}", 50, GUIDANCE, "openvino")
            clip = draw(task)
            row = np.concatenate([clip[i] for i in SHOWN], axis=1)
            label = Image.new("RGB", (LABEL, row.shape[0]), "white")
            ImageDraw.Draw(label).text((4, row.shape[0] // 2 - 6), f"{kind}\n{precision}", fill="black")
            blocks.append(np.concatenate([np.asarray(label), row], axis=1))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(blocks)).save(arguments.out, optimize=True)
    print(f"{arguments.out}: {task.scene.caption}")


if __name__ == "__main__":
    main()
