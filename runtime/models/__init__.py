"""The model families: what a clip's sizes, inputs, schedule and VAE are. There is one, CogVideoX."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reelquant.runtime.errors import BundleError
from reelquant.runtime.models.cogvideox.family import CogVideoX

if TYPE_CHECKING:
    from reelquant.runtime.bundle.manifest import Manifest

FAMILIES = {CogVideoX.NAME: CogVideoX}


def model_of(manifest: Manifest) -> CogVideoX:
    """A bundle's model.

    Raises:
        BundleError: it is of a family that this version does not know.
    """
    if manifest.family not in FAMILIES:
        raise BundleError(
            f"the bundle is of the family {manifest.family!r}, and this version knows {', '.join(FAMILIES)}; use the version "
            "that made it"
        )
    return FAMILIES[manifest.family].of(manifest)
