"""A second model family: one whose VAE's config gives the scale as ``latents_std``, and whose clips have 12 frames a second."""

from __future__ import annotations

from pathlib import Path

from reelquant.runtime.errors import BundleError
from reelquant.runtime.models.cogvideox.family import CogVideoX


class Toy(CogVideoX):
    NAME = "toy"

    @property
    def scale(self) -> float:
        return 1 / float(self.vae["latents_std"])

    @property
    def fps(self) -> int:
        return 12

    def check(self, where: Path) -> None:
        if not isinstance(self.vae.get("latents_std"), float):
            raise BundleError(f"{where} has no latents_std; export the bundle again")
