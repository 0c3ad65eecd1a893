"""What a public variant's clip takes of a GPU, and the least time it can take there: no GPU is needed, and nothing of it is measured on one.

    python -m benchmarks.gpu_plan --like cogvideox-2b
    python -m benchmarks.gpu_plan --like cogvideox1.5-5b --json

TensorRT-RTX engines of two and of three layers are built at the clip's full shapes, of random weights; every further layer takes what the third
did. The VAE is built as it is. Tables are Markdown: bytes of each stage, how a clip runs on cards of several sizes, and the roofline of each
card (:mod:`reelquant.runtime.engines.tensorrt.roofline`) beside published times.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.engines import built_apart, fp32_bundle, in_precision
from benchmarks.variants import VARIANTS, Variant
from reelquant.runtime.engines.device_memory import StageMemory, choose, kept_bytes
from reelquant.runtime.engines.tensorrt.memory import stage_of
from reelquant.runtime.engines.tensorrt.roofline import clip_seconds
from reelquant.runtime.machine.cards import CARDS, free_of
from reelquant.runtime.models.cogvideox.family import CogVideoX
from reelquant.runtime.models.cogvideox.stages import IMAGE, Stage, clip_stages
from reelquant.runtime.sizes import Size

DEPTHS = (2, 3)
GIGABYTES = (12, 16, 24, 48, 80)
STEPS = 50  # each of two forwards
# Seconds of a clip of 50 steps, as others published them: by variant and card, each with what it was.
PUBLISHED = {
    ("cogvideox-2b", "A100"): "90 (CogVideo README, fp16), 81 (diffusers-torchao, compiled)",
    ("cogvideox-2b", "H100"): "45 (CogVideo README, fp16)",
    ("cogvideox-2b", "RTX 4090"): "86, 54 with INT8 attention (SageAttention)",
    ("cogvideox-5b", "A100"): "180 (CogVideo README, bf16), 212 (diffusers-torchao, compiled)",
    (
        "cogvideox-5b",
        "H100",
    ): "90 (CogVideo README, bf16), 87 (diffusers-torchao, compiled), 75 (the same, FP8 linears)",
    ("cogvideox1.5-5b", "A100"): "1000 (CogVideo README, bf16)",
    ("cogvideox1.5-5b", "H100"): "550 (CogVideo README, bf16), 465 (TeaCache's baseline)",
    ("cogvideox1.5-5b", "RTX 4090"): "1040, 577 with INT8 attention (SageAttention)",
}
Record = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """One precision of the transformer, with the VAE in tiles or not; ``seconds`` by card and stage."""

    precision: str
    tiled: bool
    stages: tuple[StageMemory, ...]
    seconds: dict[str, dict[str, float] | None]


def deeper(two: Record, three: Record, layers: int) -> Record:
    """What an engine of ``layers`` would be, from those of :data:`DEPTHS`: every further layer adds what the third did, and computes in what
    they did.
    """
    more = layers - DEPTHS[0]

    def grown(first: float, second: float) -> float:
        return first + more * (second - first)

    return {
        **three,
        "engine_bytes": int(grown(two["engine_bytes"], three["engine_bytes"])),
        "activation_bytes": max(two["activation_bytes"], three["activation_bytes"]),
        "layers": [
            {**key, **{name: grown(first[name], second[name]) for name in ("count", "flops", "bytes")}}
            for key, first, second in _paired(two["layers"], three["layers"])
        ],
    }


def _paired(two: Sequence[Record], three: Sequence[Record]) -> Iterator[tuple[Record, Record, Record]]:
    """Groups of layers that are alike in both, one of which may lack some."""
    sums, none = ("count", "flops", "bytes"), {"count": 0, "flops": 0.0, "bytes": 0.0}
    found: dict[str, tuple[Record, Record, Record]] = {}
    for place, groups in enumerate((two, three)):
        for group in groups:
            key = {name: value for name, value in group.items() if name not in sums}
            entry = list(found.get(json.dumps(key), (key, none, none)))
            entry[1 + place] = group
            found[json.dumps(key)] = (entry[0], entry[1], entry[2])
    return iter(found.values())


def built(
    work: Path, name: str, variant: Variant, network: str, precision: str, size: Size, tiled: bool
) -> list[Record]:
    """The evidence of a network's engines, by graph; ``name`` of the bundle that is kept in ``work``."""
    bundle = in_precision(fp32_bundle(work, name, variant, (network,)), precision, _base(variant))
    rows = built_apart(bundle, str(size), "sm89", tiled, work / "engines")
    return [{**row, "graph": row["graph"].split("/")[1]} for row in rows]


def stacked(work: Path, like: str, variant: Variant, network: str, precision: str, size: Size) -> Record:
    """As :func:`built`, of a network of many layers, at its full depth."""
    two, three = (
        built(work, f"{like}-{depth}", variant.layers(depth), network, precision, size, False)[0] for depth in DEPTHS
    )
    config = variant.transformer if network == "transformer" else variant.text_encoder
    return deeper(two, three, config["num_layers"])


def ways(work: Path, like: str, size: Size, precisions: Sequence[str]) -> list[Way]:
    """Of a variant at ``size``, every precision whole and in tiles. The text encoder and the VAE are those of all variants."""
    variant, common = VARIANTS[like], VARIANTS["cogvideox-2b"]
    model = CogVideoX.of_configs(variant.transformer, variant.vae, variant.scheduler)
    source = IMAGE if "ImageToVideo" in variant.pipeline else None
    short = replace(size, frames=9)  # neither the text encoder nor the VAE's chunks know how long the clip is
    records = {"text_encoder": [stacked(work, "cogvideox-2b", common, "text_encoder", "bf16", short)]}
    found = []
    for precision in precisions:
        records["transformer"] = [stacked(work, like, variant, "transformer", precision, size)]
        for tiled in (False, True):
            stages = clip_stages(model, size, 2, 2 * STEPS, tiled, source)
            for half in [stage for stage in stages if stage.component.startswith("vae")]:
                rows = built(work, "cogvideox-2b-2", common.layers(2), half.component, "fp16", short, tiled)
                records[half.component] = [row for row in rows if row["graph"] in half.runs]
            found.append(_way(precision, tiled, stages, records))
    return found


def _way(precision: str, tiled: bool, stages: Sequence[Stage], rows: Mapping[str, Sequence[Record]]) -> Way:
    records = {
        name: [{**{key: row[key] for key in ("graph", "profile", "tensor_bytes")}, "evidence": row} for row in each]
        for name, each in rows.items()
    }
    memory = tuple(stage_of(stage.component, records[stage.component]) for stage in stages)
    return Way(precision, tiled, memory, {card.name: clip_seconds(records, stages, card) for card in CARDS.values()})


def _base(variant: Variant) -> str:
    return "fp16" if variant.dtype == "F16" else "bf16"


def tables(like: str, size: Size, found: Sequence[Way]) -> Iterator[str]:
    """Markdown."""
    yield f"{like}, {size}: bytes of each stage, GB\n"
    yield "| stage | precision | weights | activations | in and out | caches | alone |"
    yield "|---|---|---|---|---|---|---|"
    yield from dict.fromkeys(row for way in found for row in _rows(way))
    yield f"\nHow a clip runs on a card of so many GB ({', '.join(f'{free_of(each) / 1e9:.1f}' for each in GIGABYTES)} of them for engines)\n"
    yield f"| precision | decoded | kept needs | {' | '.join(f'{each} GB' for each in GIGABYTES)} |"
    yield f"|---|---|---|{'---|' * len(GIGABYTES)}"
    for way in found:
        modes = (choose(way.stages, free_of(each)) or "does not fit" for each in GIGABYTES)
        yield f"| {way.precision} | {'in tiles' if way.tiled else 'whole'} | {_gb(kept_bytes(way.stages))} | {' | '.join(modes)} |"
    yield f"\nThe least seconds by the cards' own limits: a step; the decoder; the clip of {STEPS} steps\n"
    whole = [way for way in found if not way.tiled]
    yield f"| card | {' | '.join(way.precision for way in whole)} | published, a clip |"
    yield f"|---|{'---|' * len(whole)}---|"
    for name in CARDS:
        cells = (_seconds(way.seconds[name]) for way in whole)
        yield f"| {name} | {' | '.join(cells)} | {PUBLISHED.get((like, name), '–')} |"


def _rows(way: Way) -> Iterator[str]:
    for stage in way.stages:
        vae = stage.name.startswith("vae")
        name = f"{stage.name}{', tiles' if way.tiled and vae else ''}"
        precision = way.precision if stage.name == "transformer" else "fp16" if vae else "bf16"
        numbers = (stage.weights, stage.activations, stage.tensors, stage.caches, stage.alone)
        yield f"| {name} | {precision} | {' | '.join(map(_gb, numbers))} |"


def _seconds(by_stage: Mapping[str, float] | None) -> str:
    if by_stage is None:
        return "–"
    return f"{by_stage['transformer'] / STEPS:.2f}; {by_stage['vae_decoder']:.1f}; {sum(by_stage.values()):.1f}"


def _gb(number: int) -> str:
    return f"{number / 1e9:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--like", choices=VARIANTS, default="cogvideox-2b")
    parser.add_argument("--precision", action="append", help="of the transformer (default: its own 16 bit, and fp8)")
    parser.add_argument("--size", help="FRAMESxHEIGHTxWIDTH (default: the variant's)")
    parser.add_argument("--work", type=Path, default=Path("build/random"), help="where bundles and engines are kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    variant = VARIANTS[arguments.like]
    usual = "81x768x1360" if "patch_size_t" in variant.transformer else "49x480x720"
    size = Size.parse(arguments.size or usual)
    found = ways(arguments.work, arguments.like, size, arguments.precision or (_base(variant), "fp8"))
    if arguments.json:
        print(json.dumps({"checkpoint": arguments.like, "clip": str(size), "ways": [asdict(way) for way in found]}))
    else:
        print("\n".join(tables(arguments.like, size, found)))


if __name__ == "__main__":
    main()
