"""The whole road: checkpoint → fp32 bundle → ranges → quantized bundle → engines, each stage only where it is due."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from reelquant.export.checkpoint import Checkpoint
from reelquant.export.trace_bundle import bundle_defaults, text_storage, tool_versions, trace_bundle
from reelquant.quant.calibrate import calibrate
from reelquant.quant.calibration_data import CalibrationData
from reelquant.quant.calibration_plan import CalibrationPlan
from reelquant.quant.lint.run import refuse_what_lint_finds
from reelquant.quant.quantize import FP4_WANTS_16_BIT, quantize_bundle
from reelquant.quant.ranges import Ranges
from reelquant.quant.recipe import Recipe, built_in_recipes
from reelquant.quant.static_shapes import static_copy
from reelquant.quant.teacher import Trial, judge_engine
from reelquant.runtime.atomic import check_free, partial_folder, scratch_folder
from reelquant.runtime.build import build_bundle
from reelquant.runtime.bundle import Bundle, write_manifest
from reelquant.runtime.engine import DEFAULT_ENGINE, check_engine, engine_version, is_compiled
from reelquant.runtime.engines.tensorrt.flavor import FLAVORS
from reelquant.runtime.engines.tensorrt.stage import NVFP4_IS_STATIC, Wanted, current_gpu
from reelquant.runtime.engines.tensorrt.targets import lacking
from reelquant.runtime.errors import BadInput, BundleError
from reelquant.runtime.manifest import BASES
from reelquant.runtime.positions import check_positions
from reelquant.runtime.progress import SILENT, Progress
from reelquant.runtime.sizes import Size, checked
from reelquant.runtime.tokenizer import Tokenizer


@dataclass(frozen=True)
class ExportPlan:
    """What to make of a checkpoint; the command line's defaults are these."""

    precision: str = "fp32"
    engine: str = DEFAULT_ENGINE
    size: tuple[int, int] | None = None
    frames: int | None = None
    text_weights: str = "fp32"
    data: str = "general"
    calibration: CalibrationPlan = field(default_factory=CalibrationPlan)
    base: str | None = None
    wanted: Wanted = field(default_factory=Wanted)
    gate: bool = True


def precisions() -> list[str]:
    """The bases and every recipe that comes with reelquant; a recipe file's path is a precision too."""
    return [*BASES, *built_in_recipes()]


def chosen_base(checkpoint: Checkpoint, plan: ExportPlan) -> str:
    """What all that is not quantized computes in.

    The precision itself where that is a base; else what the user says; else float32 on a CPU, and for TensorRT the 16 bit
    that the checkpoint was trained in, or bf16, which overflows nowhere.

    Raises:
        BadInput: unknown, not what the precision says, or FP4 where it does not run.
    """
    if plan.base is not None and plan.base not in BASES:
        raise BadInput(f"unknown base precision {plan.base!r}; one of {', '.join(BASES)}")
    if plan.precision in BASES:
        if plan.base not in (None, plan.precision):
            raise BadInput(f"precision {plan.precision} is a base itself; leave --base {plan.base} out")
        return plan.precision
    trained = {"F16": "fp16"}.get(checkpoint.stored_dtype, "bf16")
    base = plan.base or (trained if is_compiled(plan.engine) else "fp32")
    recipe = _recipe(plan.precision)
    if recipe and "fp4" in recipe.formats and (base == "fp32" or not is_compiled(plan.engine)):
        raise BadInput(FP4_WANTS_16_BIT)
    return base


def export_checkpoint(
    source: str,
    out: Path,
    plan: ExportPlan,
    work: Path | None = None,
    replace: bool = False,
    say: Callable[[str], None] = lambda _: None,
    progress: Progress = SILENT,
) -> Bundle:
    """Make the bundle ``out`` from a checkpoint.

    ``work`` keeps the fp32 bundle and the ranges; what is there and still true is used again, so that a second
    precision costs only its own stages. Without it they live in a scratch folder.

    Raises:
        BadInput: an unknown precision or engine, an impossible size, or ``out`` is taken.
        BundleError: the checkpoint cannot be used.
        AccuracyError: a graph differs from torch.
        MissingExtra: the engine's package is not installed.
    """
    check_engine(plan.engine)
    engine_version(plan.engine)  # a missing package is reported before the work, not after it
    recipe = _recipe(plan.precision)
    data = CalibrationData.load(plan.data) if recipe else None
    check_free(out, replace)
    checkpoint = Checkpoint.open(source)
    checkpoint.check_content()
    defaults = bundle_defaults(checkpoint, plan.size, plan.frames)
    base = chosen_base(checkpoint, plan)
    if is_compiled(plan.engine):
        _check_engines(checkpoint, plan, recipe, base)
    if data:  # what the calibration would refuse is refused before the work too
        prompts = plan.calibration.prompts
        data.first(prompts)
        if checkpoint.task == "i2v":
            data.images_for(prompts)
        config = checkpoint.config("transformer")
        plan.calibration.clip_size(defaults, checkpoint.geometry, config, checkpoint.text_tokens)
        tokenizer = Tokenizer.of(checkpoint.tokenizer, checkpoint.text_tokens, source)
        data.check_tokens(prompts, tokenizer)
        tried = data.last(Trial.prompts, checkpoint.task)
        tried.check_tokens(len(tried.prompts), tokenizer)
    if recipe is None and base == "fp32" and work is None:
        say(f"trace {checkpoint.name}")
        bundle = trace_bundle(checkpoint, out, plan.size, plan.frames, replace, progress, plan.text_weights)
        return _built(bundle, plan, say, progress)
    with _work_folder(work, out) as folder:
        fp32 = _traced(checkpoint, folder / "fp32", plan, say, progress)
        if recipe is None and base == "fp32":
            bundle = _copied(fp32, out, replace)
        elif recipe is None or data is None:
            say(f"compute in {base}")
            bundle = quantize_bundle(fp32, None, None, out, replace, base)
        else:
            ranges = _calibrated(fp32, folder / "ranges", data, plan.calibration, say, progress)
            say(f"quantize by recipe {recipe.name}, base {base}")
            trial = _trial(plan, ranges)
            bundle = quantize_bundle(fp32, ranges, recipe, out, replace, base, trial, progress=progress)
        return _built(bundle, plan, say, progress)


def _trial(plan: ExportPlan, ranges: Ranges) -> Trial | None:
    """On clips of the calibration's size: what this machine could calibrate on, it can judge on."""
    made = ranges.provenance
    size = Size(made.frames, made.height, made.width)
    return Trial(plan.data, size=size, engine=judge_engine(plan.engine)) if plan.gate else None


def _check_engines(checkpoint: Checkpoint, plan: ExportPlan, recipe: Recipe | None, base: str) -> None:
    """What the build would refuse, hours later, is refused before the work.

    Raises:
        BadInput: the GPU of this machine is asked for and there is none, a clip cannot be made, or a GPU lacks a format.
    """
    options, geometry = plan.wanted.options, checkpoint.geometry
    current_gpu(options, FLAVORS[plan.engine])
    for clip in plan.wanted.sizes:
        check_positions(checkpoint.config("transformer"), *checked(clip, geometry).latent_shape(geometry)[2:])
    formats = recipe.formats & {"fp8", "fp4"} if recipe else set()
    fault = lacking(options.targets, formats | ({"bf16"} if base != "fp32" else set()))
    if "fp4" in formats and plan.wanted.dynamic:
        raise BadInput(NVFP4_IS_STATIC)
    if fault:
        raise BadInput(f"{fault}; choose other GPUs (--gpu) or another --precision than {plan.precision}")


def _built(bundle: Bundle, plan: ExportPlan, say: Callable[[str], None], progress: Progress) -> Bundle:
    wanted = replace(plan.wanted, static_copy=static_copy)
    if is_compiled(plan.engine):
        for warning in refuse_what_lint_finds(bundle, wanted):
            say(warning)
    say(f"build for {plan.engine}")
    return build_bundle(bundle, plan.engine, progress=progress, wanted=wanted)


def _recipe(precision: str) -> Recipe | None:
    if precision in BASES:
        return None
    if precision not in precisions() and not precision.endswith(".toml"):
        raise BadInput(f"unknown precision {precision!r}; one of {', '.join(precisions())}, or a recipe file (.toml)")
    return Recipe.load(precision)


def _traced(
    checkpoint: Checkpoint, path: Path, plan: ExportPlan, say: Callable[[str], None], progress: Progress
) -> Bundle:
    try:
        bundle = Bundle.open(path)
        manifest = bundle.manifest
        if (
            manifest.source["files"] == checkpoint.hashes()
            and manifest.tools == tool_versions()
            and text_storage(manifest) == plan.text_weights
            and manifest.defaults == bundle_defaults(checkpoint, plan.size, plan.frames)
        ):
            bundle.check_hashes()
            say(f"trace: {path} is up to date")
            return bundle
    except BundleError:
        pass  # nothing there, or half of something: made anew
    say(f"trace {checkpoint.name}")
    return trace_bundle(checkpoint, path, plan.size, plan.frames, True, progress, plan.text_weights)


def _calibrated(
    fp32: Bundle,
    path: Path,
    data: CalibrationData,
    plan: CalibrationPlan,
    say: Callable[[str], None],
    progress: Progress,
) -> Ranges:
    manifest = fp32.manifest
    size = plan.wanted_size(manifest.defaults, manifest.geometry)
    try:
        ranges = Ranges.load(path)
        made = ranges.provenance
        found = (made.source_digest, made.data_sha256, made.engine, made.engine_version)
        sampled = (made.prompts, made.steps, made.seed, Size(made.frames, made.height, made.width))
        read = (fp32.digest, data.digest(manifest.task, plan.prompts), plan.engine, engine_version(plan.engine))
        if found == read and sampled == (plan.prompts, plan.steps, plan.seed, size):
            say(f"calibrate: {path} is up to date ({ranges.summary})")
            return ranges
    except BundleError:
        pass
    check_free(path, replace=True)  # before hours of work for it
    say(f"calibrate on {data.name}: {plan.prompts} prompts, {plan.steps} steps each")
    ranges = calibrate(fp32, data, plan, progress)
    ranges.save(path, replace=True)
    return ranges


def _copied(bundle: Bundle, out: Path, replace: bool) -> Bundle:
    with partial_folder(out, replace) as folder:
        bundle.copy_files(folder)
        write_manifest(folder, bundle.manifest)
    return Bundle.open(out)


@contextmanager
def _work_folder(work: Path | None, out: Path) -> Iterator[Path]:
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
        yield work
        return
    with scratch_folder(out, "export") as folder:
        yield folder
