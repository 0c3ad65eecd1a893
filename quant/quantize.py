"""The third stage: fp32 bundle + ranges + recipe → a quantized bundle, in a base precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx_ir as ir

from reelquant.quant.calibration.ranges import Ranges
from reelquant.quant.decoder_bundle import DecoderTrial, check_decoder, compute_in_bf16, convolve_in_int8
from reelquant.quant.derive import Derivation, derive_bundle
from reelquant.quant.evaluation.gate import judge, limits_of
from reelquant.quant.evaluation.limits import Limits
from reelquant.quant.evaluation.teacher import Step, Trial
from reelquant.quant.passes.insert_qdq import QdqReport, insert_qdq
from reelquant.quant.passes.mark_bf16 import PASS as BF16
from reelquant.quant.passes.mark_bf16 import mark_bf16
from reelquant.quant.passes.store_weights import FORMATS, store_weights
from reelquant.quant.passes.to_16bit import to_16bit
from reelquant.quant.recipe import Recipe
from reelquant.quant.sections import ALWAYS, TEXT_ENCODER, VAE_DECODER
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.bundle.support import BASES
from reelquant.runtime.engines.registry import get_engine
from reelquant.runtime.engines.session import BF16_ATTENTION
from reelquant.runtime.errors import AccuracyError, BadInput
from reelquant.runtime.progress import SILENT, Progress

QUANTIZED = "transformer"
RECIPE = "recipe.toml"  # in the bundle: what it was quantized by


def quantize_bundle(
    bundle: Bundle,
    ranges: Ranges | None,
    recipe: Recipe | None,
    out: Path,
    replace_out: bool = False,
    base: str = "fp32",
    trial: Trial | None = None,
    steps: Sequence[Step] | None = None,
    engine: str | None = None,
    progress: Progress = SILENT,
) -> Bundle:
    """Write ``out``: the bundle in the recipe's numerics, and all else in ``base``.

    With a ``trial`` the quantized transformer is first held against the bundle's on these clips (:mod:`reelquant.quant.evaluation.gate`);
    the verdict and its limits stand in the manifest. What no CPU computes (NVFP4) is not. What a CPU computes beside float32
    alone (MXFP8) is held so before it is written in ``base``. ``steps`` are what the trial recorded, where it was recorded before.

    Where the recipe puts the VAE's decoder in INT8, its scales are of the clips that the ranges keep, and it is tried on
    ``engine``; without one, or with fewer than two clips, that section is left out. A text encoder whose weights were stored when it
    was traced stays as it is.

    Without a recipe (and ranges) only the base changes. In a 16-bit base every network computes in 16 bit; the text
    encoder in bf16 even if the others are fp16, which T5 overflows.

    Raises:
        BadInput: the ranges are of another bundle, a rule of the recipe matches nothing, the bundle is not fp32, the
            recipe's numerics do not stand beside the base, or ``out`` is taken.
        BundleError: a file of the bundle was changed, or a weight does not fit the base.
        AccuracyError: the gate refuses what came out; nothing is written.
    """
    manifest = bundle.manifest
    if base not in BASES:
        raise BadInput(f"unknown base precision {base!r}; one of {', '.join(BASES)}")
    check_sources(bundle, ranges)
    if recipe is not None:
        recipe.check_base(base)
    changed = set(manifest.components) if base != "fp32" else {QUANTIZED} if recipe else set()
    text = manifest.components.get(TEXT_ENCODER)  # not there where a transformer alone was traced
    storage = recipe.text_storage if recipe and text is not None and not text.formats else "fp32"
    changed |= {TEXT_ENCODER} if storage != "fp32" else set()
    convolves = base == "fp32" and _convolves(recipe, ranges, engine)
    if convolves:
        check_decoder(bundle)
        changed.add(VAE_DECODER)
    with derive_bundle(bundle, out, changed, replace_out) as derived:
        derived.changes |= {"precision": recipe.name if recipe else base, "quantization": None}
        for name in sorted(changed):
            if name == VAE_DECODER and convolves:
                assert recipe is not None and ranges is not None and engine is not None
                _convolved(derived, recipe, ranges, engine, progress)
                continue
            models = derived.models(name)
            if name == TEXT_ENCODER and storage != "fp32":
                counts = store_weights(models["main"], storage)
                derived.note(name, {"main": {"store_weights": {"storage": storage, **counts}}})
                derived.formats(name, FORMATS[storage])
            if name == QUANTIZED and recipe is not None and ranges is not None:
                models = _quantized(derived, models, ranges, recipe, base, trial, steps, progress)
            if base != "fp32":
                compute = "bf16" if name == TEXT_ENCODER else base
                derived.note(name, {graph: {"to_16bit": to_16bit(model, compute)} for graph, model in models.items()})
                derived.compute(name, compute)
            derived.write(name, models)
    return Bundle.open(out)


def _quantized(
    derived: Derivation,
    models: dict[str, ir.Model],
    ranges: Ranges,
    recipe: Recipe,
    base: str,
    trial: Trial | None,
    steps: Sequence[Step] | None,
    progress: Progress,
) -> dict[str, ir.Model]:
    """The transformer's graphs as the recipe says, still in float32, and judged by the trial.

    Raises:
        BadInput: the recipe quantizes nothing.
        AccuracyError: the gate refuses.
    """
    bundle = derived.bundle
    judged = trial is not None and recipe.judged
    support = recipe.support(base)
    # What a CPU does not compute beside this base is judged beside float32, and inserted again.
    again = judged and not all(each.cpu for each in support.values())
    report = insert_qdq(models["main"], ranges, recipe, "fp32" if again else base, progress)
    if not report.quantized and not report.weight_only:
        raise BadInput(f"recipe {recipe.name} quantizes no linear of {bundle.path}")
    in_bf16 = recipe.bf16_attention and base == "fp32"
    if in_bf16:
        mark_bf16(models["main"], BF16_ATTENTION)
    verdict = None
    if trial is not None and judged:
        # What is not quantized is in fp32, which every CPU engine computes.
        written = derived.write(QUANTIZED, models)
        recorded = trial.record(bundle, progress) if steps is None else steps
        limits = limits_of(report.numerics, "fp32")
        assert limits is not None  # something is quantized
        verdict = _gated(bundle, derived.folder / written.graphs["main"], limits, recipe, trial, recorded, progress)
    if again:
        models = derived.models(QUANTIZED)
        report = insert_qdq(models["main"], ranges, recipe, base, progress)
    derived.note(QUANTIZED, {"main": {"insert_qdq": report.counts(), **({BF16: BF16_ATTENTION} if in_bf16 else {})}})
    derived.formats(QUANTIZED, {name: support[name] for name in sorted(report.numerics)})
    derived.changes["quantization"] = {**_quantization(bundle, ranges, recipe, report), "gate": verdict}
    (derived.folder / RECIPE).write_text(recipe.to_toml(), encoding="utf-8")
    return models


def _convolves(recipe: Recipe | None, ranges: Ranges | None, engine: str | None) -> bool:
    if recipe is None or ranges is None or engine is None or len(ranges.clips) < 2:
        return False
    return recipe.section(VAE_DECODER).takes_effect(get_engine(engine).fast_int8_convolutions())


def _convolved(derived: Derivation, recipe: Recipe, ranges: Ranges, engine: str, progress: Progress) -> None:
    """The decoder in INT8; where it loses too much and the recipe asks for speed alone, in bf16 if it asks for that too, or as it was.

    Raises:
        AccuracyError: it loses too much, and the recipe wants it in any case.
    """
    progress.say("put the VAE's decoder in INT8")
    # As many as quantize-decoder takes; the last is held out.
    seen, unseen = ranges.clips[:-1][: DecoderTrial.prompts], ranges.clips[-DecoderTrial.held_out :]
    trial = {"ranges_sha256": ranges.digest, "prompts": len(seen), "held_out": len(unseen), "engine": engine}
    try:
        convolve_in_int8(derived, seen, unseen, engine, trial, progress, recipe.section(VAE_DECODER).bf16)
    except AccuracyError as error:
        if recipe.section(VAE_DECODER).when == ALWAYS:
            raise
        progress.say(str(error))
        try:
            if not recipe.section(VAE_DECODER).bf16:
                raise
            compute_in_bf16(derived, unseen, engine, trial, progress)
        except AccuracyError:
            derived.keep(VAE_DECODER)


def check_sources(bundle: Bundle, ranges: Ranges | None) -> None:
    """Raises:
    BadInput: the bundle is not fp32, or the ranges are of another bundle.
    """
    if bundle.manifest.precision != "fp32":
        precision = bundle.manifest.precision
        raise BadInput(f"{bundle.path} is {precision}; start from the fp32 bundle that export wrote")
    if ranges is not None and ranges.provenance.source_digest != bundle.digest:
        raise BadInput(f"these ranges are not of {bundle.path}; run: reelquant calibrate {bundle.path} RANGES")


def _gated(
    bundle: Bundle,
    graph: Path,
    limits: Limits,
    recipe: Recipe,
    trial: Trial,
    steps: Sequence[Step],
    progress: Progress,
) -> dict[str, Any]:
    """What the gate says of the transformer at ``graph``, held against ``bundle``'s.

    Raises:
        AccuracyError: it refuses.
    """
    verdict = judge(graph, bundle.graph(QUANTIZED, "main"), limits, True, steps, trial.engine, progress)
    if verdict.faults:
        more = f" (and {len(verdict.faults) - 1} faults more)" if len(verdict.faults) > 1 else ""
        raise AccuracyError(
            f"recipe {recipe.name} costs {bundle.path} too much. {verdict.faults[0]}{more}; keep such layers high, give a "
            "--budget, or write the bundle without the gate: --no-gate"
        )
    return {**verdict.as_json(), "trial": {**asdict(trial), "data": Path(trial.data).name}}


def _quantization(bundle: Bundle, ranges: Ranges, recipe: Recipe, report: QdqReport) -> dict[str, Any]:
    return {
        "recipe": recipe.name,
        "recipe_sha256": recipe.digest,
        "rules": [[rule.match, rule.numerics] for rule in recipe.rules],
        "method": asdict(recipe.method),
        "ranges_sha256": ranges.digest,
        "ranges": ranges.summary,
        "source_bundle": bundle.digest,
        "families": {family: dict(counts) for family, counts in sorted(report.families.items())},
        "skipped": report.skipped,
    }
