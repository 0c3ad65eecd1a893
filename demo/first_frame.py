"""Draw ``demo/first_frame.png``, the image that ``make export`` renders its image-to-video clips from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from demo.clips import Scene, render


def main(path: Path = Path("demo/first_frame.png")) -> None:
    scene = Scene("blue", "triangle", "up", "grey")
    Image.fromarray(render(scene, np.random.default_rng(3))[0]).save(path, optimize=True)


if __name__ == "__main__":
    main()
