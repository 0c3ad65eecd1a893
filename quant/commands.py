"""``reelquant calibrate``, ``quantize``, ``rotate`` and ``gate``."""

from __future__ import annotations

from pathlib import Path

import click

from reelquant.quant.calibration.calibrate import calibrate as run_calibration
from reelquant.quant.calibration.data import CalibrationData
from reelquant.quant.calibration.plan import CalibrationPlan
from reelquant.quant.calibration.ranges import Ranges
from reelquant.quant.decoder_bundle import DecoderTrial, quantize_decoder
from reelquant.quant.evaluation.gate import check_reference
from reelquant.quant.evaluation.gate import gate as run_gate
from reelquant.quant.evaluation.teacher import Trial
from reelquant.quant.graph.graph_files import load_graph
from reelquant.quant.quantize import check_sources, quantize_bundle
from reelquant.quant.recipe import Recipe, built_in_recipes
from reelquant.quant.rotate_bundle import rotate_bundle
from reelquant.quant.search.budget import Budget
from reelquant.quant.search.explain import as_json as table_json
from reelquant.quant.search.explain import as_table, explain
from reelquant.quant.search.search import search
from reelquant.quant.search.strengths import search_strengths
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.commands.options import BUNDLE, ENGINE, JSON, QUIET, lower, print_json, shown, size_option
from reelquant.runtime.engines.engine import REFERENCE_ENGINE
from reelquant.runtime.engines.registry import get_engine, installed_engine
from reelquant.runtime.files.atomic import check_free
from reelquant.runtime.progress import Progress
from reelquant.runtime.request import MAX_STEPS
from reelquant.runtime.sizes import Size, parse_clip

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
CLIP_FRAMES = click.option(
    "--calibration-frames", type=int, help="Frames of each calibration clip [default: the bundle's]."
)
# Clips that calibration did not see, on which a quantized transformer is judged.
TRIAL_DATA = click.option(
    "--data",
    default=Trial.data,
    show_default=True,
    help="A calibration set by name, or a folder; the last prompts of the set are tried.",
)
TRIAL_PROMPTS = click.option(
    "--prompts", type=click.IntRange(1), default=Trial.prompts, show_default=True, help="Clips that are tried."
)
TRIAL_STEPS = click.option(
    "--steps",
    type=click.IntRange(1, MAX_STEPS),
    default=Trial.steps,
    show_default=True,
    help="Denoising steps of each clip that is tried.",
)
TRIAL_SEED = click.option(
    "--seed",
    type=click.IntRange(0),
    default=Trial.seed,
    show_default=True,
    help="Seed of the clips that are tried; calibration has another.",
)
GATE = click.option(
    "--gate/--no-gate",
    default=True,
    show_default=True,
    help="Refuse a transformer that lost too much (reelquant gate).",
)
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
    "--engine",
    default=CalibrationPlan.engine,
    show_default=True,
    metavar="NAME",
    help="The engine that runs BUNDLE's graphs.",
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
    check_free(out, replace)
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
@click.option(
    "--recipe",
    default="int8",
    show_default=True,
    callback=lower,
    help=f"{', '.join(built_in_recipes())}, or a .toml file.",
)
@click.option(
    "--base",
    default="fp32",
    show_default=True,
    callback=lower,
    help="What is not quantized computes in: fp32, fp16, bf16.",
)
@click.option("--budget", metavar="LIMIT", help="Leave high what it takes: rel_l2<=0.02, size<=900MB or seconds<=1.5.")
@click.option("--search-strength", is_flag=True, help="Search the balancing strength of every layer first.")
@click.option("--explain", "explained", is_flag=True, help="Print every linear: numerics, why, measured error.")
@GATE
@TRIAL_DATA
@TRIAL_PROMPTS
@TRIAL_STEPS
@TRIAL_SEED
@click.option(
    "--engine",
    metavar="NAME",
    help="The engine that will run OUT: there OUT is judged, and timed for a budget of seconds [default: openvino where it is "
    "installed, else onnxruntime].",
)
@REPLACE
@QUIET
@JSON
def quantize(
    bundle: Path,
    ranges: Path,
    out: Path,
    recipe: str,
    base: str,
    budget: str | None,
    search_strength: bool,
    explained: bool,
    gate: bool,
    data: str,
    prompts: int,
    steps: int,
    seed: int,
    engine: str | None,
    replace: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Quantize the transformer of BUNDLE (fp32) with RANGES by a recipe, see what it lost, and write the bundle OUT.

    OUT/recipe.toml is the recipe, as a budget or a search made it.
    """
    wanted = Budget.parse(budget) if budget else None
    source, seen, chosen = Bundle.open(bundle), Ranges.load(ranges), Recipe.load(recipe)
    made = seen.provenance
    runs = get_engine(engine) if engine else installed_engine()
    trial = Trial(data, prompts, steps, seed, Size(made.frames, made.height, made.width), runs.accuracy_engine)
    check_free(out, replace)
    recorded = None
    with Progress(shown(quiet)) as progress:
        if wanted or search_strength:
            check_sources(source, seen)
            recorded = trial.record(source, progress)
            if search_strength:
                chosen = search_strengths(source, seen, chosen, recorded, REFERENCE_ENGINE, progress)
            if wanted:
                found = search(source, seen, chosen, wanted, recorded, trial.engine, base, progress)
                chosen = found.recipe
        held = trial if gate else None
        result = quantize_bundle(source, seen, chosen, out, replace, base, held, recorded, progress)
    quantization = result.manifest.quantization
    assert quantization is not None
    part, verdict = result.manifest.components["transformer"], quantization["gate"]
    counts = part.passes["main"]["insert_qdq"]
    errors = verdict["linears"] if verdict else {}
    lines = explain(load_graph(source.graph("transformer", "main")), chosen, quantization["skipped"], errors)
    if as_json:
        facts = {"recipe": chosen.name, **counts, "stats": part.stats["main"], "gate": verdict}
        if wanted:
            facts["budget"] = {"limit": str(wanted), "rel_l2": found.rel_l2, "high": found.high, "alone": found.errors}
        print_json(
            {"path": str(out), **facts, "linears": table_json(lines)} if explained else {"path": str(out), **facts}
        )
        return
    if explained:
        click.echo(as_table(lines))
    if wanted:
        click.echo(
            f"{wanted}: {len(found.high)} of {len(found.errors)} products left high; relative L2 {found.rel_l2:.5f}"
        )
    lost = "not gated"
    if verdict:
        steps_run = f"{len(verdict['runs'])} steps on {verdict['engine']}"
        lost = f"relative L2 {verdict['rel_l2']:.4f} at worst over {steps_run}"
    if verdict and verdict["dead"]:
        click.echo(f"fed nothing but zeros, so dead: {', '.join(verdict['dead'])}", err=True)
    fates = f"{counts['quantized']} linears quantized, {counts['kept_high']} kept high, {counts['skipped']} skipped"
    click.echo(f"{out}: {fates}; {lost}")


@click.command()
@BUNDLE
@OUT
@REPLACE
def rotate(bundle: Path, out: Path, replace: bool) -> None:
    """Fold a Hadamard rotation into to_v and to_out of BUNDLE (fp32); the output is unchanged. Calibrate OUT afterwards."""
    made = rotate_bundle(Bundle.open(bundle), out, replace)
    count = made.manifest.components["transformer"].passes["main"]["rotate"]["attentions"]
    click.echo(f"{out}: {count} attentions rotated; calibrate and quantize it as any fp32 bundle")


@click.command("quantize-decoder")
@BUNDLE
@OUT
@click.option("--data", default=DecoderTrial.data, show_default=True, help="A set by name, or a folder.")
@click.option(
    "--prompts",
    type=click.IntRange(1),
    default=DecoderTrial.prompts,
    show_default=True,
    help="Clips from which scales are taken.",
)
@click.option(
    "--held-out",
    type=click.IntRange(1),
    default=DecoderTrial.held_out,
    show_default=True,
    help="Clips, of the last prompts, whose frames are compared.",
)
@click.option(
    "--steps",
    type=click.IntRange(1, MAX_STEPS),
    default=DecoderTrial.steps,
    show_default=True,
    help="Denoising steps of each clip.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=DecoderTrial.seed, show_default=True, help="Seed of the first clip."
)
@click.option("--clip", metavar="FRAMESxHEIGHTxWIDTH", help="Size of the clips [default: BUNDLE's].")
@click.option(
    "--engine",
    default=DecoderTrial.engine,
    show_default=True,
    metavar="NAME",
    help="The engine that renders the clips.",
)
@REPLACE
@QUIET
@JSON
def decoder(
    bundle: Path,
    out: Path,
    data: str,
    prompts: int,
    held_out: int,
    steps: int,
    seed: int,
    clip: str | None,
    engine: str,
    replace: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Quantize the VAE decoder's convolutions of BUNDLE (base fp32) to INT8 and write OUT. OpenVINO gains by it on a CPU;
    ONNX Runtime does not.
    """
    size = parse_clip(clip) if clip else None
    trial = DecoderTrial(data, prompts, held_out, steps, seed, get_engine(engine).name, size)
    with Progress(shown(quiet)) as progress:
        made = quantize_decoder(Bundle.open(bundle), out, trial, replace, progress)
    facts = made.manifest.components["vae_decoder"].passes["next"]["quantize_convolutions"]
    if as_json:
        print_json({"path": str(out), **facts})
    else:
        click.echo(
            f"{out}: {facts['convolutions']} convolutions in INT8; frames are {facts['psnr']:.1f} dB from fp32's"
        )


@click.command()
@BUNDLE
@click.argument("reference", type=click.Path(path_type=Path))
@TRIAL_DATA
@TRIAL_PROMPTS
@TRIAL_STEPS
@TRIAL_SEED
@click.option("--clip", metavar="FRAMESxHEIGHTxWIDTH", help="Size of the clips [default: REFERENCE's].")
@ENGINE
@QUIET
@JSON
@click.pass_context
def gate(
    context: click.Context,
    bundle: Path,
    reference: Path,
    data: str,
    prompts: int,
    steps: int,
    seed: int,
    clip: str | None,
    engine: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Hold BUNDLE, quantized, against REFERENCE, the fp32 bundle it was made from. Exit code 1 when it lost too much."""
    judged, teacher = Bundle.open(bundle), Bundle.open(reference)
    engine = get_engine(engine).accuracy_engine
    check_reference(judged, teacher, engine)
    size = parse_clip(clip) if clip else None
    trial = Trial(data, prompts, steps, seed, size, engine)
    with Progress(shown(quiet)) as progress:
        verdict = run_gate(judged, teacher, trial.record(teacher, progress), engine, progress)
    if as_json:
        print_json(verdict.as_json())
    else:
        for fault in verdict.faults:
            click.echo(fault)
        said = f"{len(verdict.faults)} faults" if verdict.faults else "passed"
        click.echo(
            f"{bundle}: {said}; relative L2 {verdict.worst.rel_l2:.4f}, cosine {verdict.worst.cosine:.5f} at worst "
            f"over {len(verdict.runs)} steps on {verdict.engine}"
        )
    context.exit(1 if verdict.faults else 0)
