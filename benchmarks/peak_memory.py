"""Load one network of a bundle and run it as the pipeline does, in this process; say how much memory that took.

    python -m benchmarks.peak_memory BUNDLE transformer openvino 9x256x256

Imports little but the runtime: what a benchmark's own packages take would be measured too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.registry import get_engine
from reelquant.runtime.models.cogvideox.vae import VaeDecoder, VaeEncoder
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.sizes import Size
from reelquant.runtime.tune.timing import step_feeds


def load_and_run(path: Path, component: str, engine: str, size: Size, tiled: bool) -> list[int]:
    """The peak in bytes; for the VAE's decoder one after each chunk."""
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    shape = manifest.geometry.latent_shape(size)
    rng = np.random.default_rng(0)
    if component == "text_encoder":
        Pipeline(bundle, EngineOptions(engine)).encode_prompt("snow")
    elif component == "transformer":
        feeds = step_feeds(bundle, size)
        plan = get_engine(engine).open_component(bundle, "transformer", EngineOptions(engine), "main")["main"]
        for _ in range(2):  # some engines take more in their second run
            plan.run({name: value for name, value in feeds.items() if name in plan.inputs})
    elif component == "vae_encoder":
        image = rng.standard_normal((1, 3, 1, size.height, size.width), dtype=np.float32)
        VaeEncoder(bundle, EngineOptions(engine)).encode_image(image)
    else:
        latents = rng.standard_normal(shape, dtype=np.float32)
        peaks: list[int] = []
        for _ in VaeDecoder(bundle, EngineOptions(engine), tiled=tiled).decode(
            latents, lambda: peaks.append(peak_bytes())
        ):
            pass
        return peaks
    return [peak_bytes()]


def peak_bytes() -> int:
    """The most memory this process has held since it began (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    bundle, component, engine, size, *more = sys.argv[1:]
    print(json.dumps(load_and_run(Path(bundle), component, engine, Size(*map(int, size.split("x"))), "tiled" in more)))
