"""The whole road: checkpoint → fp32 bundle → ranges → quantized bundle → engines, each stage only where it is due."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from reelquant.export.checkpoint import Checkpoint
from reelquant.export.sampling import AS_TRAINED, Sampling
from reelquant.export.trace_bundle import text_storage, tool_versions, trace_bundle
from reelquant.quant.calibration.calibrate import calibrate, sampling_of
from reelquant.quant.calibration.data import CalibrationData
from reelquant.quant.calibration.plan import CalibrationPlan
from reelquant.quant.calibration.ranges import Ranges
from reelquant.quant.derive import derive_bundle
from reelquant.quant.evaluation.teacher import Trial
from reelquant.quant.passes.rotate import check_head
from reelquant.quant.quantize import quantize_bundle
from reelquant.quant.recipe import Recipe, built_in_recipes
from reelquant.quant.rotate_bundle import rotate_bundle
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.bundle.manifest import Manifest
from reelquant.runtime.bundle.support import BASES
from reelquant.runtime.engines.engine import REFERENCE_ENGINE
from reelquant.runtime.engines.options import BuildSpec
from reelquant.runtime.engines.registry import DEFAULT_ENGINE, get_engine
from reelquant.runtime.errors import BadInput, BundleError
from reelquant.runtime.files.atomic import check_free, scratch_folder
from reelquant.runtime.models import model_of
from reelquant.runtime.progress import SILENT, Progress
from reelquant.runtime.sampling.tokenizer import Tokenizer
from reelquant.runtime.sizes import Size


@dataclass(frozen=True)
class ExportPlan:
    """What to make of a checkpoint; the command line's defaults are these.

    ``text_weights`` is what the text encoder's weights are stored in ("fp32", "bf16", "int8"), where not as the recipe says. ``loras``
    are files, each with ``:SCALE`` after it if wanted, that are merged into the transformer; ``sampling`` is how clips are made by default.
    """

    precision: str = "fp32"
    engine: str = DEFAULT_ENGINE
    size: Size | None = None
    text_weights: str | None = None
    data: str = "general"
    calibration: CalibrationPlan = field(default_factory=CalibrationPlan)
    base: str | None = None
    spec: BuildSpec = field(default_factory=BuildSpec)
    gate: bool = True
    loras: tuple[str, ...] = ()
    sampling: Sampling = AS_TRAINED


def precisions() -> list[str]:
    """The bases and every recipe that comes with reelquant; a recipe file's path is a precision too."""
    return [*BASES, *built_in_recipes()]


def chosen_base(checkpoint: Checkpoint, plan: ExportPlan) -> str:
    """What all that is not quantized computes in.

    The precision itself where that is a base; else what the user says; else float32 on a CPU, and for TensorRT the 16 bit
    that the checkpoint was trained in, or bf16, which overflows nowhere.

    Raises:
        BadInput: unknown, not what the precision says, or a recipe whose numerics do not stand beside it.
    """
    if plan.base is not None and plan.base not in BASES:
        raise BadInput(f"unknown base precision {plan.base!r}; one of {', '.join(BASES)}")
    if plan.precision in BASES:
        if plan.base not in (None, plan.precision):
            raise BadInput(f"precision {plan.precision} is a base itself; leave --base {plan.base} out")
        return plan.precision
    trained = {"F16": "fp16"}.get(checkpoint.stored_dtype, "bf16")
    base = plan.base or get_engine(plan.engine).compute_dtype(trained)
    recipe = _recipe(plan.precision)
    if recipe:
        recipe.check_base(base)
        if recipe.rotate:
            check_head(checkpoint.model.head_dim)
    return base


def stored_text(plan: ExportPlan) -> str:
    """What the text encoder's weights are stored in.

    Raises:
        BadInput: an unknown precision.
    """
    recipe = _recipe(plan.precision)
    return plan.text_weights or (recipe.text_storage if recipe else "fp32")


def export_checkpoint(
    source: str,
    out: Path,
    plan: ExportPlan,
    work: Path | None = None,
    replace: bool = False,
    progress: Progress = SILENT,
) -> Bundle:
    """Make the bundle ``out`` from a checkpoint.

    ``work`` keeps the fp32 bundle and the ranges; what is there and still true is used again, so that a second
    precision costs only its own stages. Without it they live in a scratch folder.

    Raises:
        BadInput: an unknown precision or engine, an impossible size or number of steps, a LoRA of another model, or ``out`` is taken.
        BundleError: the checkpoint cannot be used.
        AccuracyError: a graph differs from torch.
        MissingExtra: the engine's package is not installed.
    """
    for engine in (plan.engine, REFERENCE_ENGINE):  # a missing package is reported before the work, not after it
        get_engine(engine).version()
    recipe = _recipe(plan.precision)
    data = CalibrationData.load(plan.data) if recipe else None
    check_free(out, replace)
    checkpoint = Checkpoint.open(source, plan.loras)
    checkpoint.check_content()
    defaults = plan.sampling.defaults(checkpoint, plan.size)
    base = chosen_base(checkpoint, plan)
    _check_build(checkpoint, plan, recipe, base)
    if data:  # what the calibration would refuse is refused before the work too
        prompts = plan.calibration.prompts
        data.first(prompts)
        if checkpoint.task == "i2v":
            data.images_for(prompts)
        plan.calibration.clip_size(defaults, checkpoint.model)
        tokenizer = Tokenizer.of(checkpoint.tokenizer, checkpoint.text_tokens, source)
        data.check_tokens(prompts, tokenizer)
        tried = data.last(Trial.prompts, checkpoint.task)
        tried.check_tokens(len(tried.prompts), tokenizer)
    if recipe is None and base == "fp32" and work is None:
        progress.say(f"trace {checkpoint.name}")
        bundle = _trace(checkpoint, out, plan, replace, progress)
        return _built(bundle, plan, progress)
    with _work_folder(work, out) as folder:
        fp32 = _traced(checkpoint, folder / "fp32", plan, progress)
        if recipe is None and base == "fp32":
            with derive_bundle(fp32, out, replace_out=replace, checked=True):
                pass
            bundle = Bundle.open(out)
        elif recipe is None or data is None:
            progress.say(f"compute in {base}")
            bundle = quantize_bundle(fp32, None, None, out, replace, base)
        else:
            if recipe.rotate:
                progress.say("rotate the attentions' values")
                fp32 = rotate_bundle(fp32, folder / "rotated", replace=True)
            ranges = _calibrated(fp32, folder / "ranges", data, plan.calibration, progress)
            progress.say(f"quantize by recipe {recipe.name}, base {base}")
            trial, engine = _trial(plan, ranges), get_engine(plan.engine).accuracy_engine
            bundle = quantize_bundle(fp32, ranges, recipe, out, replace, base, trial, engine=engine, progress=progress)
        return _built(bundle, plan, progress)


def _trial(plan: ExportPlan, ranges: Ranges) -> Trial | None:
    """On clips of the calibration's size: what this machine could calibrate on, it can judge on."""
    engine = get_engine(plan.engine).accuracy_engine
    return Trial(plan.data, size=ranges.provenance.size, engine=engine) if plan.gate else None


def _check_build(checkpoint: Checkpoint, plan: ExportPlan, recipe: Recipe | None, base: str) -> None:
    """What the build would refuse, hours later, is refused before the work.

    Raises:
        BadInput: the engine cannot compute in these formats or build for these GPUs, or a clip cannot be made.
    """
    get_engine(plan.engine).check_build(plan.spec, {base: BASES[base], **(recipe.support(base) if recipe else {})})
    for clip in plan.spec.sizes:
        checkpoint.model.checked(clip)


def _built(bundle: Bundle, plan: ExportPlan, progress: Progress) -> Bundle:
    progress.say(f"build for {plan.engine}")
    return get_engine(plan.engine).build(bundle, plan.spec, progress)


def _recipe(precision: str) -> Recipe | None:
    if precision in BASES:
        return None
    if precision not in precisions() and not precision.endswith(".toml"):
        raise BadInput(f"unknown precision {precision!r}; one of {', '.join(precisions())}, or a recipe file (.toml)")
    return Recipe.load(precision)


def is_up_to_date(manifest: Manifest, checkpoint: Checkpoint, plan: ExportPlan) -> bool:
    """Whether an fp32 bundle is the one that tracing ``checkpoint`` by ``plan`` would make; its name there makes no difference."""
    return (
        manifest.source["files"] == checkpoint.hashes()
        and manifest.source.get("loras", []) == [lora.record for lora in checkpoint.loras]
        and manifest.tools == tool_versions()
        and text_storage(manifest) == stored_text(plan)
        and manifest.defaults == plan.sampling.defaults(checkpoint, plan.size)
        and manifest.scheduler == plan.sampling.scheduler_config(checkpoint)
    )


def _traced(checkpoint: Checkpoint, path: Path, plan: ExportPlan, progress: Progress) -> Bundle:
    try:
        bundle = Bundle.open(path)
        if is_up_to_date(bundle.manifest, checkpoint, plan):
            bundle.check_hashes()
            progress.say(f"trace: {path} is up to date")
            return bundle
    except BundleError:
        pass  # nothing there, or half of something: made anew
    progress.say(f"trace {checkpoint.name}")
    return _trace(checkpoint, path, plan, True, progress)


def _trace(checkpoint: Checkpoint, out: Path, plan: ExportPlan, replace: bool, progress: Progress) -> Bundle:
    return trace_bundle(checkpoint, out, plan.size, replace, progress, stored_text(plan), sampling=plan.sampling)


def _calibrated(
    fp32: Bundle,
    path: Path,
    data: CalibrationData,
    plan: CalibrationPlan,
    progress: Progress,
) -> Ranges:
    manifest = fp32.manifest
    size = plan.wanted_size(manifest.defaults, model_of(manifest))
    try:
        ranges = Ranges.load(path)
        made = ranges.provenance
        found = (made.source_digest, made.data_sha256, made.engine, made.engine_version)
        sampled = (made.prompts, made.steps, made.seed, made.size, made.sampling)
        read = (fp32.digest, data.digest(manifest.task, plan.prompts), plan.engine, get_engine(plan.engine).version())
        if found == read and sampled == (plan.prompts, plan.steps, plan.seed, size, sampling_of(manifest, plan.steps)):
            progress.say(f"calibrate: {path} is up to date ({ranges.summary})")
            return ranges
    except BundleError:
        pass
    check_free(path, replace=True)  # before hours of work for it
    progress.say(f"calibrate on {data.name}: {plan.prompts} prompts, {sampling_of(manifest, plan.steps)}")
    ranges = calibrate(fp32, data, plan, progress)
    ranges.save(path, replace=True)
    return ranges


@contextmanager
def _work_folder(work: Path | None, out: Path) -> Iterator[Path]:
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
        yield work
        return
    with scratch_folder(out, "export") as folder:
        yield folder
