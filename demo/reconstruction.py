"""How well a VAE gives a clip back: ``python -m demo.reconstruction PATH``, PATH a checkpoint or a bundle.

Held-out 17-frame clips go through the posterior's mean and back; the number is the mean PSNR in dB.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from demo.clips import random_scene, render
from demo.fidelity import Pixels, psnr
from reelquant.runtime.media.images import from_model, to_model


def reconstructor(path: Path, engine: str) -> Callable[[Pixels], Pixels]:
    """A function that encodes and decodes one uint8 [frames, height, width, 3] clip."""
    if (path / "manifest.json").is_file():
        from reelquant.runtime.bundle import Bundle
        from reelquant.runtime.engines.options import EngineOptions
        from reelquant.runtime.models.cogvideox.vae import VaeDecoder, VaeEncoder

        bundle = Bundle.open(path)
        encoder, decoder = VaeEncoder(bundle, EngineOptions(engine)), VaeDecoder(bundle, EngineOptions(engine))
        return lambda clip: np.concatenate([from_model(c) for c in decoder.decode(encoder.encode(to_model(clip)))])
    import torch
    from diffusers import AutoencoderKLCogVideoX

    vae = AutoencoderKLCogVideoX.from_pretrained(path / "vae", torch_dtype=torch.float32)

    def reconstruct(clip: Pixels) -> Pixels:
        with torch.no_grad():
            latents = vae.encode(torch.from_numpy(to_model(clip))).latent_dist.mode()
            return from_model(vae.decode(latents).sample.numpy())

    return reconstruct


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", default="openvino", help="for a bundle")
    arguments = parser.parse_args()
    reconstruct = reconstructor(arguments.path, arguments.engine)
    rng = np.random.default_rng([arguments.seed, 0xE7A1])
    clips = [render(random_scene(rng, held_out=True), rng) for _ in range(arguments.clips)]
    values = [psnr(reconstruct(clip), clip) for clip in clips]
    found = {"clips": len(values), "psnr": round(float(np.mean(values)), 2), "least": round(min(values), 2)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
