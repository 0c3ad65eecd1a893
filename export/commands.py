"""``reelquant export`` and ``reelquant trace``."""

from __future__ import annotations

from pathlib import Path

import click

from reelquant.export.checkpoint import Checkpoint
from reelquant.export.plan import Choices, describe, make_plan, refuse_what_cannot_fit
from reelquant.export.road import ExportPlan, chosen_base, export_checkpoint, stored_text
from reelquant.export.sampling import Sampling
from reelquant.export.trace_bundle import trace_bundle
from reelquant.quant.calibration.plan import CalibrationPlan
from reelquant.quant.commands.options import GATE, OUT, REPLACE, sampling_options
from reelquant.quant.passes.store_weights import STORAGES
from reelquant.runtime.commands.options import (
    BUILD_SPEC,
    ENGINE,
    JSON,
    QUIET,
    lower,
    option_group,
    print_json,
    shown,
    size_option,
    timesteps_option,
)
from reelquant.runtime.engines.options import BuildSpec
from reelquant.runtime.models.cogvideox.schedulers import NAMES
from reelquant.runtime.progress import Progress
from reelquant.runtime.request import MAX_STEPS
from reelquant.runtime.sizes import Size

CHECKPOINT = click.argument("checkpoint")
SIZE = size_option("Default size of the clips [default: the checkpoint's].")
TEXT_WEIGHTS = click.option(
    "--text-weights",
    type=click.Choice(STORAGES, case_sensitive=False),
    help="How the text encoder's weights are stored; it computes in fp32 [default: as the recipe says, else fp32].",
)
LORA = click.option(
    "--lora", "loras", multiple=True, metavar="FILE[:SCALE]", help="Merge this LoRA (.safetensors); several add up."
)
# How clips are sampled where a request does not say: ``defaults: Sampling``.
SAMPLING = option_group(
    "defaults",
    Sampling,
    click.option("--steps", type=click.IntRange(1, MAX_STEPS), help="Default steps of the clips [default: 50]."),
    timesteps_option("Default steps, at the timesteps that a model was distilled to."),
    click.option("--guidance", type=float, help="Default guidance scale; 1 turns it off [default: 6]."),
    click.option(
        "--scheduler", type=click.Choice(list(NAMES), case_sensitive=False), help="Sampler [default: the checkpoint's]."
    ),
)


@click.command()
@CHECKPOINT
@OUT
@LORA
@SAMPLING
@click.option("--precision", default=ExportPlan.precision, show_default=True, callback=lower,
              help="fp32, fp16, bf16, a recipe (int8, fp8, …) or a recipe file.")  # fmt: skip
@ENGINE
@SIZE
@TEXT_WEIGHTS
@click.option(
    "--base", callback=lower, help="What is not quantized computes in: fp32, fp16, bf16 [default: fp32 on a CPU]."
)
@BUILD_SPEC
@click.option("--data", default=ExportPlan.data, show_default=True, help="Calibration set: a name, or a folder.")
@sampling_options("calibration-")
@GATE
@click.option("--work", type=click.Path(path_type=Path), help="Folder that keeps the fp32 bundle and ranges for reuse.")
@click.option("--plan", "only_plan", is_flag=True, help="Say what it needs, refuse what cannot fit here, and stop.")
@REPLACE
@QUIET
@JSON
def export(
    checkpoint: str,
    out: Path,
    loras: tuple[str, ...],
    defaults: Sampling,
    precision: str,
    engine: str,
    size: Size | None,
    text_weights: str | None,
    base: str | None,
    spec: BuildSpec,
    data: str,
    sampling: CalibrationPlan,
    gate: bool,
    work: Path | None,
    only_plan: bool,
    replace: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Make the bundle OUT from CHECKPOINT (a diffusers folder or a hub id): trace, calibrate, quantize, build."""
    plan = ExportPlan(precision, engine, size, text_weights, data, sampling, base, spec, gate, loras, defaults)
    if only_plan:
        _print_plan(checkpoint, out, plan, as_json)
        return
    with Progress(shown(quiet), says=not quiet) as progress:
        bundle = export_checkpoint(checkpoint, out, plan, work, replace, progress)
    manifest = bundle.manifest
    if as_json:
        parity = {name: part.parity for name, part in manifest.components.items()}
        print_json(
            {
                "bundle": str(out),
                "loras": manifest.source["loras"],
                "task": manifest.task,
                "precision": manifest.precision,
                "engines": manifest.engines,
                "digest": bundle.digest,
                "bytes": sum(entry.size for entry in manifest.files.values()),
                "parity": parity,
                "quantization": manifest.quantization,
            }
        )
    else:
        size_mb = sum(entry.size for entry in manifest.files.values()) / 1e6
        click.echo(f"{out}: {manifest.task}, {manifest.precision}, {size_mb:.1f} MB, ready for {engine}")


def _print_plan(source: str, out: Path, plan: ExportPlan, as_json: bool) -> None:
    checkpoint = Checkpoint.open(source, plan.loras)
    checkpoint.check_content()
    base = chosen_base(checkpoint, plan)
    defaults = plan.sampling.defaults(checkpoint, plan.size)
    calibration = plan.calibration.wanted_size(defaults, checkpoint.model)
    choices = Choices(defaults.size, plan.precision, stored_text(plan), plan.engine, plan.spec.tiled, calibration, base)
    needs = make_plan(checkpoint, defaults, choices)
    if as_json:
        print_json(needs.as_json())
    else:
        click.echo("\n".join(describe(needs)))
    refuse_what_cannot_fit(checkpoint, out, defaults, needs)


@click.command()
@CHECKPOINT
@OUT
@LORA
@SAMPLING
@SIZE
@TEXT_WEIGHTS
@REPLACE
@QUIET
@JSON
def trace(
    checkpoint: str,
    out: Path,
    loras: tuple[str, ...],
    defaults: Sampling,
    size: Size | None,
    text_weights: str | None,
    replace: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Trace CHECKPOINT's networks, check each graph against torch, and write the fp32 bundle OUT."""
    opened = Checkpoint.open(checkpoint, loras)
    with Progress(shown(quiet)) as progress:
        bundle = trace_bundle(opened, out, size, replace, progress, text_weights or "fp32", sampling=defaults)
    parts = bundle.manifest.components
    if as_json:
        print_json({"bundle": str(out), "parity": {n: p.parity for n, p in parts.items()}, "digest": bundle.digest})
        return
    worst = max(entry["relative_l2"] for part in parts.values() for entry in part.parity.values())
    click.echo(f"{out}: {sum(len(p.graphs) for p in parts.values())} graphs, worst relative L2 to torch {worst:.1e}")
