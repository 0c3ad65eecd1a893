"""What a clip says of its making: all that makes it again (:mod:`reelquant.runtime.remake`), as JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.engine import Engine
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.remake import pixels_digest
from reelquant.runtime.request import ResolvedRequest
from reelquant.runtime.sampling.stepper import Work


def machinery(engine: Engine, options: EngineOptions, tiled: bool) -> dict[str, Any]:
    """What besides bundle and request decides the frames' last bits."""
    return {
        "engine": engine.name,
        "engine_version": engine.version(),
        "threads": options.threads,
        "batch": options.batch,
        "tiled": tiled,
    }


def clip_provenance(
    resolved: ResolvedRequest, bundle: Bundle, made_by: Mapping[str, Any], work: Work
) -> dict[str, Any]:
    """Of a clip of ``bundle``; ``made_by`` is :func:`machinery`'s, ``work`` what its denoising took."""
    manifest, request = bundle.manifest, resolved.request
    made: dict[str, Any] = {
        "generator": "reelquant",
        "version": metadata.version("reelquant"),
        "model": manifest.source.get("checkpoint"),
        "bundle": bundle.digest,
        "task": manifest.task,
        "precision": manifest.precision,
        **made_by,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "seed": resolved.seed,
        "steps": resolved.steps,
        "timesteps": None if resolved.scheduler.listed is None else list(resolved.scheduler.listed),
        "guidance": resolved.guidance,
        "frames": resolved.size.frames,
        "height": resolved.size.height,
        "width": resolved.size.width,
        "scheduler": request.scheduler,
    }
    for name, given, pixels in (("image", request.image, resolved.image), ("video", request.video, resolved.video)):
        if pixels is not None:
            path = os.path.abspath(given) if isinstance(given, str | os.PathLike) else None
            made[name] = {"path": path, "sha256": pixels_digest(pixels)}
    if resolved.strength is not None:
        made["strength"] = resolved.strength
    made["forwards"] = work.forwards
    if resolved.schedule is not None:
        schedule = resolved.schedule
        made["schedule"] = {
            "name": schedule.name,
            "sha256": schedule.digest,
            "of": 2 * schedule.steps,  # forwards of the whole sampling
            "psnr": schedule.measured.get("psnr"),
            "psnr_p5": schedule.measured.get("psnr_p5"),
            "given_up_at": work.given_up_at,
        }
    handed = ("latents", "image_noise", "step_noise")
    made["given"] = [name for name in handed if getattr(request, name) is not None]
    return made
