"""What a clip takes of a GPU, stage by stage, from what the manifest says of each engine: known before anything is loaded.

Weights are as large as an engine's file, which also holds the kernels that are loaded with them. Activations are the builder's word for the
largest shapes, inputs and outputs those tensors' bytes. What TensorRT and CUDA take besides is not known without a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from reelquant.runtime.bundle.manifest import Manifest
from reelquant.runtime.engines.device_memory import ClipMemory, StageMemory
from reelquant.runtime.engines.tensorrt.shapes import Profile, profile
from reelquant.runtime.errors import BadInput
from reelquant.runtime.models import model_of
from reelquant.runtime.models.cogvideox.schedulers import scheduler_from_config
from reelquant.runtime.models.cogvideox.stages import Stage
from reelquant.runtime.models.cogvideox.tiles import exceeds
from reelquant.runtime.models.cogvideox.vae import NEXT_CACHE
from reelquant.runtime.sizes import Size

Record = Mapping[str, Any]
_BOUND_TWICE = ("text", "image_latents")  # by both halves of guidance, a row each
_ADDED = 12  # arrays: nothing, what is fed, a result, latents, velocities, and what forecasts are made of, two of each
RANGE = 1.3  # what an engine for a range of tiles takes more than one for the largest alone: 1.26 and 1.18, docs/benchmarks.md


def records_of(
    manifest: Manifest, engine: str, size: Size, tiled: bool, stages: Sequence[Stage]
) -> dict[str, list[Record]]:
    """The records of the engines that run a clip, by stage.

    Raises:
        BadInput: no engine of a graph was built for this size.
    """
    built = manifest.engines.get(engine, {}).get("engines", [])
    found: dict[str, list[Record]] = {}
    for stage in stages:
        wanted = profile(manifest, stage.component, size, tiled)
        for graph in stage.runs:
            of_graph = [each for each in built if (each["component"], each["graph"]) == (stage.component, graph)]
            fit = next((each for each in of_graph if _covers(Profile.from_json(each["profile"]), wanted)), None)
            if fit is None:
                way = f"{size}{' --tiled' if tiled else ''}"
                raise BadInput(
                    f"no engine was built for this size ({way}: {stage.component}/{graph}; built: {_built(of_graph)}); build one with: "
                    f"reelquant build BUNDLE --clip {way} --engine {engine} --gpu …, or ask for a size that was"
                )
            found.setdefault(stage.component, []).append(fit)
    return found


def clip_memory(manifest: Manifest, engine: str, size: Size, tiled: bool, stages: Sequence[Stage]) -> ClipMemory | None:
    """Of a clip, stage by stage; None where its engines were built by a version that did not record what is needed, or by a TensorRT that does not
    say it.

    Raises:
        BadInput: as :func:`records_of`.
    """
    needs = _needs(manifest, engine, size, tiled, stages)
    if needs is None:
        return None
    return ClipMemory(needs, lambda: _other_ways(manifest, engine, size, tiled, stages, needs))


def _needs(
    manifest: Manifest, engine: str, size: Size, tiled: bool, stages: Sequence[Stage]
) -> tuple[StageMemory, ...] | None:
    found = []
    for name, records in records_of(manifest, engine, size, tiled, stages).items():
        if any("tensor_bytes" not in each or each["evidence"]["activation_bytes"] is None for each in records):
            return None
        wanted = profile(manifest, name, size, tiled)
        stage = stage_of(name, [_at(each, wanted) for each in records])
        if name == "transformer":
            stage = replace(stage, tensors=stage.tensors + _between_runs(manifest, engine, wanted))
        found.append(stage)
    return tuple(found)


def _between_runs(manifest: Manifest, engine: str, wanted: Profile) -> int:
    """Bytes of what is added up between two runs of the transformer, where that is done on the device: float32, as many values as latents have. A
    scheduler that adds noise at each step has all of it there from the start.
    """
    built = manifest.engines[engine]["engines"]
    if all(each["component"] != "sampling" for each in built):
        return 0
    model, sides = model_of(manifest), wanted.most
    values = model.geometry.latent_channels * math.prod(sides[side] for side in ("latent_frames", "height", "width"))
    noise = manifest.defaults.steps if scheduler_from_config(manifest.scheduler).adds_noise else 0
    return 4 * values * (_ADDED + noise)


def _at(record: Record, wanted: Profile) -> Record:
    """What an engine for a range of sizes takes at one of them, which its record does not say: estimated from the most."""
    share = _share(Profile.from_json(record["profile"]), wanted)
    evidence = {**record["evidence"], "activation_bytes": int(share * record["evidence"]["activation_bytes"])}
    sizes = {name: int(share * size) for name, size in record["tensor_bytes"].items()}
    return {**record, "tensor_bytes": sizes, "evidence": evidence}


def _share(of: Profile, to: Profile) -> float:
    """How much of the memory that the most of ``of`` takes the most of ``to`` does: a transformer's grows with its tokens, a VAE's with the area
    of what it takes at once.
    """
    sides = ("tokens",) if "tokens" in of.most else ("height", "width") if "height" in of.most else ()
    return math.prod(to.most[side] / of.most[side] for side in sides)


def stage_of(name: str, records: Sequence[Record]) -> StageMemory:
    """A stage of the engines that ``records`` of a manifest describe, one of each of its graphs that run."""
    tensors, caches = 0, 0
    for record in records:
        sizes: Mapping[str, int] = record["tensor_bytes"]
        streamed = [each for each in sizes if _is_cache(each)] if record["graph"] in ("first", "next") else []
        tensors += sum(sizes[each] for each in sizes if each not in streamed)
        tensors += sum(sizes.get(each, 0) for each in _BOUND_TWICE)
        caches = max(caches, sum(sizes[each] for each in streamed if each.startswith(NEXT_CACHE)))
    return StageMemory(
        name,
        weights=sum(record["evidence"]["engine_bytes"] for record in records),
        activations=max(record["evidence"]["activation_bytes"] for record in records),
        tensors=tensors,
        caches=caches * (2 if len(records) > 1 else 1),
    )


def _is_cache(tensor: str) -> bool:
    return tensor.startswith((NEXT_CACHE, NEXT_CACHE.removeprefix("next_")))


def _other_ways(
    manifest: Manifest, engine: str, size: Size, tiled: bool, stages: Sequence[Stage], needs: Sequence[StageMemory]
) -> dict[str, tuple[StageMemory, ...]]:
    """In tiles, then ever smaller. Of clips that engines were built for it is known, of others estimated from ``needs``."""
    found = {}
    for other, in_tiles in _modest(manifest, size, tiled):
        options = f"--size {other}{' --tiled' if in_tiles else ''}"
        try:
            known = _needs(manifest, engine, other, in_tiles, stages)
        except BadInput:
            known = None
        if known is None:
            options += f" (build its engines first: --clip {other}{' --tiled' if in_tiles else ''})"
        found[options] = known or tuple(_estimated(manifest, each, (size, tiled), (other, in_tiles)) for each in needs)
    return found


def _modest(manifest: Manifest, size: Size, tiled: bool) -> Iterator[tuple[Size, bool]]:
    model = model_of(manifest)
    cell = model.geometry.spatial

    def can_be_tiled(other: Size) -> bool:
        return exceeds((other.height // cell, other.width // cell), model.tilings())

    if not tiled and can_be_tiled(size):
        yield size, True
    for other in model.smaller(size):
        yield other, can_be_tiled(other)


def _estimated(manifest: Manifest, known: StageMemory, of: tuple[Size, bool], to: tuple[Size, bool]) -> StageMemory:
    """A stage at another size, in an engine that is built for it."""
    before, after = (profile(manifest, known.name, size, tiled) for size, tiled in (of, to))
    share = _share(before, after) * (RANGE if before.is_static and not after.is_static else 1)
    return replace(
        known,
        activations=int(share * known.activations),
        tensors=int(share * known.tensors),
        caches=int(share * known.caches),
    )


def _covers(built: Profile, wanted: Profile) -> bool:
    """Whether an engine takes all of the shapes that ``wanted`` has."""
    return built.most.keys() == wanted.most.keys() and all(
        built.least[name] <= wanted.least[name] and wanted.most[name] <= built.most[name] for name in built.most
    )


def _built(records: Sequence[Record]) -> str:
    found = dict.fromkeys(
        ", ".join(f"{name} {values[-1]}" for name, values in each["profile"].items()) for each in records
    )
    return " or ".join(found) or "none"
