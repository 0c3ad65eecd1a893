"""What a clip says of its making → the request that makes it again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.errors import BadInput
from reelquant.runtime.request import Request, Settings
from reelquant.runtime.video import read_provenance

_NEEDED = ("bundle", "engine", "prompt", "negative_prompt", "seed", "steps", "guidance", "frames", "height", "width")


@dataclass(frozen=True)
class Remake:
    """A clip's own request and how its pipeline was opened; ``source`` is the digest of its image or video, if it has one."""

    request: Request
    engine: str
    engine_version: str
    threads: int | None
    tiled: bool
    source: str | None

    def check(self, settings: Settings) -> None:
        """See that the image or video is the one that the clip was made from.

        Raises:
            BadInput: it is another.
        """
        found = pixels_digest(settings.image if settings.image is not None else settings.video)
        if found != self.source:
            raise BadInput(
                "the image or video is another than the clip was made from (its pixels at the clip's size differ); "
                "give that one with --image or --video"
            )


def read_remake(path: Path, bundle: Bundle) -> Remake:
    """Of a clip that ``reelquant generate`` wrote (.mp4, .gif or .png) from ``bundle``.

    Raises:
        BadInput: the file does not say how it was made, it was made from another bundle, or from noise that was handed in.
    """
    made = read_provenance(path)
    missing = [name for name in _NEEDED if name not in made]
    if made.get("generator") != "reelquant" or missing:
        raise BadInput(
            f"{path} does not say how it was made; clips that reelquant generate writes do (.mp4, .gif, .png)"
        )
    if made["bundle"] != bundle.digest:
        raise BadInput(
            f"{path} was made from bundle {made['bundle'][:12]}… ({made.get('precision')}), and {bundle.path} is "
            f"{bundle.digest[:12]}…; give the bundle that it was made from"
        )
    if made.get("given"):
        raise BadInput(
            f"{path} was made from {', '.join(made['given'])} that a program handed in, and cannot be made again"
        )
    source: Mapping[str, Any] = made.get("image") or made.get("video") or {}
    request = Request(
        prompt=made["prompt"],
        image=_path(made.get("image")),
        negative_prompt=made["negative_prompt"],
        seed=made["seed"],
        steps=made["steps"],
        guidance=made["guidance"],
        frames=made["frames"],
        height=made["height"],
        width=made["width"],
        scheduler=made.get("scheduler"),
        video=_path(made.get("video")),
        strength=made.get("strength"),
    )
    return Remake(
        request,
        made["engine"],
        str(made.get("engine_version")),
        made.get("threads"),
        bool(made.get("tiled")),
        source.get("sha256"),
    )


def pixels_digest(pixels: NDArray[np.uint8] | None) -> str | None:
    """sha256 of pixels in C order; None of none."""
    return None if pixels is None else hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()


def _path(source: Mapping[str, Any] | None) -> Path | None:
    return Path(source["path"]) if source and source.get("path") else None
