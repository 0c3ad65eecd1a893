"""``reelquant inspect``: what a bundle holds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.commands.options import BUNDLE, JSON, print_json
from reelquant.runtime.engines.precision_notes import note_of
from reelquant.runtime.engines.registry import installed_engine
from reelquant.runtime.engines.session import BF16_ALL, BF16_ATTENTION
from reelquant.runtime.sampling.schedule import Schedule, load_schedule, schedules_of

_BF16 = {
    "": "",
    BF16_ATTENTION: "; attention in bf16 where the CPU has units for it",
    BF16_ALL: "; the rest in bf16 where the CPU has units for it",
}
_COUNTS = ("nodes", "linears", "quantized_linears")


@click.command()
@BUNDLE
@JSON
def inspect(bundle: Path, as_json: bool) -> None:
    """Say what BUNDLE holds: its manifest, and per component what its graphs are made of."""
    opened = Bundle.open(bundle)
    engine = installed_engine()
    note = note_of(opened.manifest, engine.precision_notes()) if engine.installed() else None
    found = {**describe(opened), "here": {"engine": engine.name, **asdict(note)} if note else None}
    if as_json:
        print_json(found)
        return
    manifest = found["manifest"]
    defaults = manifest["defaults"]
    click.echo(f"{bundle}: {manifest['task']}, {manifest['precision']}, from {manifest['source']['checkpoint']}")
    for lora in manifest["source"].get("loras", []):
        click.echo(f"with LoRA {lora['file']}, scale {lora['scale']:g}, sha256 {lora['sha256'][:12]}…")
    at = f" at timesteps {', '.join(map(str, defaults['timesteps']))}" if defaults["timesteps"] else ""
    click.echo(
        "default clip: {frames} frames, {height}x{width}, {fps} fps, {steps} steps{at}, guidance {guidance:g}".format(
            **defaults, at=at
        )
    )
    click.echo(f"{'component':14} {'nodes':>6} {'linears':>8} {'quantized':>10} {'weights':>10}  computes in")
    for name, part in found["components"].items():
        click.echo(
            f"{name:14} {part['nodes']:6} {part['linears']:8} {part['quantized_linears']:10} "
            f"{part['weight_bytes'] / 1e6:7.2f} MB  {', '.join([part['compute'], *part['formats']])}{_BF16[part['bf16']]}"
        )
    for name, record in manifest["engines"].items():
        click.echo(f"built for {name} {record['version']}")
    for name, schedule in found["schedules"].items():
        click.echo(
            f"schedule {name}: {schedule['forwards']} of {schedule['of']} forwards"
            + (f", {schedule['psnr']} dB to every step computed" if schedule["psnr"] is not None else "")
        )
    if note:
        click.echo(f"{note.precision} on this CPU, with {engine.name}: {note.text}")


def describe(bundle: Bundle) -> dict[str, Any]:
    """The manifest and, per component: nodes and linears summed over its graphs, and the bytes of its weight file.

    A component's graphs share their weights, so dtypes are those of its largest graph's tensors.
    """
    manifest = asdict(bundle.manifest)
    components = {}
    for name, part in bundle.manifest.components.items():
        stats = list(part.stats.values())
        largest: dict[str, Any] = max(stats, key=lambda entry: entry["weight_bytes"], default={})
        weights = {
            file: entry.size
            for file, entry in bundle.manifest.files.items()
            if file.startswith(f"{name}/") and not file.endswith(".onnx")
        }
        components[name] = {
            "graphs": sorted(part.graphs),
            "compute": part.compute,
            "formats": sorted(part.formats),
            "bf16": next((facts["bf16"] for facts in part.passes.values() if "bf16" in facts), ""),
            **{key: sum(entry[key] for entry in stats) for key in _COUNTS},
            "weight_bytes": sum(weights.values()),
            "weight_dtypes": largest.get("weight_bytes_by_dtype", {}),
        }
    return {
        "path": str(bundle.path),
        "digest": bundle.digest,
        "components": components,
        "schedules": {name: _of_schedule(load_schedule(name, bundle)) for name in schedules_of(bundle)},
        "manifest": manifest,
    }


def _of_schedule(schedule: Schedule) -> dict[str, Any]:
    """What it computes, and what was measured of it."""
    of = 2 * schedule.steps
    return {"kinds": schedule.kinds, "of": of, "psnr": None, **schedule.measured, "forwards": schedule.forwards}
