"""``reelquant calibrate``, ``reelquant quantize`` and ``reelquant gate``."""

from __future__ import annotations

from pathlib import Path

import click

from reelquant.quant.calibrate import calibrate as run_calibration
from reelquant.quant.calibration_data import CalibrationData
from reelquant.quant.calibration_plan import CalibrationPlan
from reelquant.quant.gate import check_twins
from reelquant.quant.gate import gate as run_gate
from reelquant.quant.quantize import quantize_bundle
from reelquant.quant.ranges import Ranges
from reelquant.quant.recipe import Recipe, built_in_recipes
from reelquant.quant.teacher import record_steps
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.commands.options import BUNDLE, ENGINE, JSON, QUIET, print_json, shown, size_option
from reelquant.runtime.engine import check_engine
from reelquant.runtime.errors import BadInput
from reelquant.runtime.progress import Progress
from reelquant.runtime.request import MAX_STEPS
from reelquant.runtime.sizes import parse_clip

OUT = click.argument("out", type=click.Path(path_type=Path))
PROMPTS = click.option(
    "--prompts", type=click.IntRange(1), default=CalibrationPlan.prompts, show_default=True, help="Calibration clips."
)
STEPS = click.option(
    "--steps",
    type=click.IntRange(1, MAX_STEPS),
    default=CalibrationPlan.steps,
    show_default=True,
    help="Denoising steps of each calibration clip.",
)
SEED = click.option(
    "--seed", type=click.IntRange(0), default=CalibrationPlan.seed, show_default=True, help="Calibration seed."
)
CLIP_SIZE = size_option("Size of the calibration clips [default: the bundle's].", "--calibration-size")
CLIP_FRAMES = click.option("--calibration-frames", type=int, help="Their number of frames [default: the bundle's].")
REPLACE = click.option("--replace", is_flag=True, help="Replace OUT when it exists, once the new one is whole.")


@click.command()
@BUNDLE
@OUT
@click.option(
    "--data", default="general", show_default=True, help="A set by name, or a folder: prompts.txt and images/."
)
@PROMPTS
@STEPS
@SEED
@CLIP_SIZE
@CLIP_FRAMES
@click.option(
    "--engine", default=CalibrationPlan.engine, show_default=True, metavar="NAME", help="What runs the graphs."
)
@REPLACE
@QUIET
@JSON
def calibrate(
    bundle: Path,
    out: Path,
    data: str,
    prompts: int,
    steps: int,
    seed: int,
    calibration_size: tuple[int, int] | None,
    calibration_frames: int | None,
    engine: str,
    replace: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run BUNDLE (fp32) over prompts and timesteps, and write the ranges of its activations to the folder OUT."""
    if out.exists() and not replace:
        raise BadInput(f"{out} exists; choose another name, or --replace it")
    plan = CalibrationPlan(prompts, steps, seed, engine, calibration_size, calibration_frames)
    with Progress(shown(quiet)) as progress:
        ranges = run_calibration(Bundle.open(bundle), CalibrationData.load(data), plan, progress)
    ranges.save(out, replace)
    if as_json:
        facts = {"tensors": len(ranges.low), "samples": len(ranges.samples), "prompts": prompts, "steps": steps}
        print_json({"path": str(out), "digest": ranges.digest, **facts})
    else:
        click.echo(f"{out}: {ranges.summary}")


@click.command()
@BUNDLE
@click.argument("ranges", type=click.Path(path_type=Path))
@OUT
@click.option("--recipe", default="int8", show_default=True, help=f"{', '.join(built_in_recipes())}, or a .toml file.")
@click.option("--base", default="fp32", show_default=True, help="What is not quantized computes in: fp32, fp16, bf16.")
@REPLACE
@JSON
def quantize(bundle: Path, ranges: Path, out: Path, recipe: str, base: str, replace: bool, as_json: bool) -> None:
    """Quantize the transformer of BUNDLE (fp32) with RANGES by a recipe, and write the bundle OUT."""
    made = quantize_bundle(Bundle.open(bundle), Ranges.load(ranges), Recipe.load(recipe), out, replace, base)
    part = made.manifest.components["transformer"]
    counts = part.passes["main"]["insert_qdq"]
    if as_json:
        print_json({"path": str(out), "recipe": recipe, **counts, "stats": part.stats["main"]})
    else:
        click.echo(
            f"{out}: {counts['quantized']} linears quantized, {counts['kept_high']} kept high, {counts['skipped']} skipped"
        )


@click.command()
@BUNDLE
@click.argument("twin", type=click.Path(path_type=Path))
@click.option("--data", default="general", show_default=True, help="A set of prompts (and images), by name or folder.")
@click.option("--prompts", type=click.IntRange(1), default=2, show_default=True, help="Clips.")
@click.option("--steps", type=click.IntRange(1, MAX_STEPS), default=4, show_default=True, help="Steps of each clip.")
@click.option("--seed", type=click.IntRange(0), default=1000, show_default=True, help="Other than calibration's.")
@click.option("--clip", metavar="FRAMESxHEIGHTxWIDTH", help="Size of the clips [default: TWIN's].")
@ENGINE
@QUIET
@JSON
@click.pass_context
def gate(
    context: click.Context,
    bundle: Path,
    twin: Path,
    data: str,
    prompts: int,
    steps: int,
    seed: int,
    clip: str | None,
    engine: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Hold BUNDLE, quantized, against TWIN, the fp32 bundle it was made from. Exit code 1 when it is not its twin any more."""
    judged, teacher = Bundle.open(bundle), Bundle.open(twin)
    check_twins(judged, teacher, check_engine(engine))
    size = parse_clip(clip) if clip else None
    requests = CalibrationData.load(data).requests(teacher.manifest.task, prompts, seed, steps, size)
    with Progress(shown(quiet)) as progress:
        verdict = run_gate(judged, teacher, record_steps(teacher, requests, engine, progress), engine, progress)
    if as_json:
        print_json(verdict.as_json())
    else:
        for fault in verdict.faults:
            click.echo(fault)
        said = f"{len(verdict.faults)} faults" if verdict.faults else "passed"
        click.echo(
            f"{bundle}: {said}; relative L2 {verdict.worst.rel_l2:.4f}, cosine {verdict.worst.cosine:.5f} at worst "
            f"over {len(verdict.runs)} steps"
        )
    context.exit(1 if verdict.faults else 0)
