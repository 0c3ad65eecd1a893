"""The third stage: fp32 bundle + ranges + recipe → a bundle whose transformer is quantized, in a base precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reelquant.quant.calibration.ranges import Ranges
from reelquant.quant.derive import derive_bundle
from reelquant.quant.evaluation.gate import judge, limits_of
from reelquant.quant.evaluation.teacher import Step, Trial
from reelquant.quant.passes.insert_qdq import QdqReport, insert_qdq
from reelquant.quant.passes.to_16bit import to_16bit
from reelquant.quant.recipe import Recipe
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.bundle.manifest import BASES, Component
from reelquant.runtime.errors import AccuracyError, BadInput
from reelquant.runtime.progress import SILENT, Progress

QUANTIZED = "transformer"
RECIPE = "recipe.toml"  # in the bundle: what it was quantized by
FP4_WANTS_16_BIT = (
    "TensorRT alone computes in FP4, beside 16 bit; use --engine tensorrt-rtx --gpu sm120, or --base fp16"
)


def quantize_bundle(
    bundle: Bundle,
    ranges: Ranges | None,
    recipe: Recipe | None,
    out: Path,
    replace_out: bool = False,
    base: str = "fp32",
    trial: Trial | None = None,
    steps: Sequence[Step] | None = None,
    progress: Progress = SILENT,
) -> Bundle:
    """Write ``out``: the bundle with its transformer in the recipe's numerics, and all else in ``base``.

    With a ``trial`` the quantized transformer is first held against the bundle's on these clips (:mod:`reelquant.quant.evaluation.gate`);
    the verdict and its limits stand in the manifest. TensorRT's FP4 is not, since no CPU computes it. ``steps`` are what
    the trial recorded, where it was recorded before.

    Without a recipe (and ranges) only the base changes. In a 16-bit base every network computes in 16 bit; the text
    encoder in bf16 even if the others are fp16, which T5 overflows.

    Raises:
        BadInput: the ranges are of another bundle, a rule of the recipe matches nothing, the bundle is not fp32, FP4
            has no 16-bit base, or ``out`` is taken.
        BundleError: a file of the bundle was changed, or a weight does not fit the base.
        AccuracyError: the gate refuses what came out; nothing is written.
    """
    manifest = bundle.manifest
    if base not in BASES:
        raise BadInput(f"unknown base precision {base!r}; one of {', '.join(BASES)}")
    check_sources(bundle, ranges)
    if recipe is not None and "fp4" in recipe.formats and base == "fp32":
        raise BadInput(FP4_WANTS_16_BIT)
    changed = set(manifest.components) if base != "fp32" else {QUANTIZED} if recipe else set()
    with derive_bundle(bundle, out, changed, replace_out) as derived:
        derived.changes |= {"precision": recipe.name if recipe else base, "base": base, "quantization": None}
        for name in sorted(changed):
            models = derived.models(name)
            passes: dict[str, dict[str, Any]] = {graph: {} for graph in models}
            if name == QUANTIZED and recipe is not None and ranges is not None:
                report = insert_qdq(models["main"], ranges, recipe, base, progress)
                if not report.quantized and not report.weight_only:
                    raise BadInput(f"recipe {recipe.name} quantizes no linear of {bundle.path}")
                passes["main"]["insert_qdq"] = report.counts()
                verdict = None
                judge_by = None if "fp4" in recipe.formats else trial
                if judge_by or base == "fp32":
                    written = derived.write(name, models, passes)
                if judge_by:
                    # What is not quantized is still in fp32, which every CPU engine computes.
                    recorded = judge_by.record(bundle, progress) if steps is None else steps
                    verdict = _gated(bundle, derived.folder, written, recipe, judge_by, recorded, progress)
                quantization = {**_quantization(bundle, ranges, recipe, report), "gate": verdict}
                derived.changes["quantization"] = quantization
                (derived.folder / RECIPE).write_text(recipe.to_toml(), encoding="utf-8")
            if base != "fp32":
                for graph, model in models.items():
                    passes[graph]["to_16bit"] = to_16bit(model, "bf16" if name == "text_encoder" else base)
                derived.write(name, models, passes)
    return Bundle.open(out)


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
    folder: Path,
    written: Component,
    recipe: Recipe,
    trial: Trial,
    steps: Sequence[Step],
    progress: Progress,
) -> dict[str, Any]:
    """What the gate says of the transformer in ``folder``, held against ``bundle``'s.

    Raises:
        AccuracyError: it refuses.
    """
    limits = limits_of(written.stats["main"], "fp32")
    assert limits is not None  # something is quantized
    reference = bundle.graph(QUANTIZED, "main")
    verdict = judge(folder / written.graphs["main"], reference, limits, True, steps, trial.engine, progress)
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
