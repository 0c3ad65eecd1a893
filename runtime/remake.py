"""What a clip says of its making → the request that makes it again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.errors import BadInput
from reelquant.runtime.media.video import read_provenance
from reelquant.runtime.request import Request, ResolvedRequest

_NEEDED: dict[str, tuple[type, ...]] = {
    "bundle": (str,),
    "engine": (str,),
    "engine_version": (str,),
    "threads": (int, NoneType),
    "batch": (int, NoneType),
    "tiled": (bool,),
    "prompt": (str,),
    "negative_prompt": (str,),
    "seed": (int,),
    "steps": (int,),
    "guidance": (int, float),
    "frames": (int,),
    "height": (int,),
    "width": (int,),
    "scheduler": (str, NoneType),
    "given": (list,),
}
_SCHEDULE: dict[str, tuple[type, ...]] = {"name": (str,), "sha256": (str,)}
_SOURCE: dict[str, tuple[type, ...]] = {"path": (str, NoneType), "sha256": (str,)}


@dataclass(frozen=True)
class Remake:
    """A clip's own request and how its pipeline was opened; ``source`` is the digest of its image or video, if it has one.

    ``decoded`` says with what its latents were decoded where that was another engine or in another way; ``schedule`` is the digest
    of its schedule, if it has one.
    """

    request: Request
    engine: str
    engine_version: str
    threads: int | None
    batch: int | None
    tiled: bool
    source: str | None
    decoded: Mapping[str, Any] | None
    schedule: str | None = None

    def is_of(self, resolved: ResolvedRequest) -> bool:
        """Whether the image or video, at the clip's size, is the one that the clip was made from."""
        return self.source == pixels_digest(resolved.image if resolved.image is not None else resolved.video)


def read_remake(path: Path, bundle: Bundle) -> Remake:
    """Of a clip that ``reelquant generate`` wrote (.mp4, .gif or .png) from ``bundle``.

    Raises:
        BadInput: the file does not say how it was made, it was made from another bundle, or from noise that was handed in.
    """
    made = read_provenance(path)
    source = made.get("image") or made.get("video")
    schedule = made.get("schedule")
    told = _holds(made, _NEEDED) and (source is None or _holds(source, _SOURCE))
    timesteps = made.get("timesteps")  # which older clips lack
    told = told and isinstance(timesteps, list | NoneType)
    told = told and (schedule is None or _holds(schedule, _SCHEDULE))
    if made.get("generator") != "reelquant" or not told:
        raise BadInput(
            f"{path} does not say how it was made; clips that reelquant generate writes do (.mp4, .gif, .png)"
        )
    if made["bundle"] != bundle.digest:
        raise BadInput(
            f"{path} was made from bundle {made['bundle'][:12]}… ({made.get('precision')}), and {bundle.path} is "
            f"{bundle.digest[:12]}…; give the bundle that it was made from"
        )
    if made["given"]:
        raise BadInput(
            f"{path} was made from {', '.join(map(str, made['given']))} that a program handed in, and cannot be made again"
        )
    request = Request(
        prompt=made["prompt"],
        image=_path(made.get("image")),
        negative_prompt=made["negative_prompt"],
        seed=made["seed"],
        steps=made["steps"] if timesteps is None else None,
        timesteps=timesteps,
        guidance=made["guidance"],
        frames=made["frames"],
        height=made["height"],
        width=made["width"],
        scheduler=made["scheduler"],
        video=_path(made.get("video")),
        strength=made.get("strength"),
        schedule=schedule["name"] if schedule else None,
    )
    return Remake(
        request,
        made["engine"],
        made["engine_version"],
        made["threads"],
        made["batch"],
        made["tiled"],
        source["sha256"] if source else None,
        made.get("decoded"),
        schedule["sha256"] if schedule else None,
    )


def pixels_digest(pixels: NDArray[np.uint8] | None) -> str | None:
    """sha256 of pixels in C order; None of none."""
    return None if pixels is None else hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()


def _holds(made: Any, kinds: Mapping[str, tuple[type, ...]]) -> bool:
    return isinstance(made, dict) and all(name in made and isinstance(made[name], kinds[name]) for name in kinds)


def _path(source: Mapping[str, Any] | None) -> Path | None:
    return Path(source["path"]) if source and source.get("path") else None
