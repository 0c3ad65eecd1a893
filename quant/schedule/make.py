"""Trajectories → the cheapest schedule that keeps a budget, tried on clips that the fit did not see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from reelquant.quant.calibration.data import CalibrationData
from reelquant.quant.derive import derive_bundle
from reelquant.quant.schedule.budget import Budget
from reelquant.quant.schedule.fit import GUARD, Fit
from reelquant.quant.schedule.measure import HeldOut, load_scorer
from reelquant.quant.schedule.search import stretch_costs
from reelquant.quant.schedule.trajectories import Trajectory, record
from reelquant.quant.schedule.trial import best_fit
from reelquant.runtime.bundle import SCHEDULES, Bundle
from reelquant.runtime.engines.choose_engine import why_not
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.registry import onnx_engines
from reelquant.runtime.errors import AccuracyError, BadInput
from reelquant.runtime.files.atomic import check_free, scratch_folder
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.progress import SILENT, Progress
from reelquant.runtime.sampling.schedule import Schedule, check_name, scheduler_facts


@dataclass(frozen=True)
class SchedulePlan:
    """Of which clips a schedule is made: fitted on the first ``prompts`` of ``data``, tried on the last ``held_out``, by ``scorer``
    (:func:`reelquant.quant.schedule.measure.load_scorer`) where fidelity counts. A forecast that misses by more than ``guard`` times what those
    of the fit did ends the schedule of a clip."""

    data: str = "general"
    prompts: int = 16
    held_out: int = 8
    steps: int | None = None
    guidance: float | None = None
    scheduler: str | None = None
    seed: int = 0
    order: int = 2
    guard: float = GUARD
    engine: str | None = None
    scorer: str | None = None


def make_schedule(
    bundle: Bundle,
    out: Path,
    name: str,
    budget: Budget,
    plan: SchedulePlan,
    replace_out: bool = False,
    progress: Progress = SILENT,
) -> Schedule:
    """Write ``out``: ``bundle`` with one schedule more, the one with the fewest forwards that keeps ``budget``.

    Raises:
        BadInput: too few prompts or images, guidance is off, no scorer for a limit on fidelity, or ``out`` is taken.
        AccuracyError: no schedule keeps the budget.
    """
    check_name(name)
    check_free(out, replace_out)
    if "fidelity" in budget and plan.scorer is None:
        raise BadInput(f"budget {budget} limits fidelity; say with --scorer MODULE:FUNCTION how clips are scored")
    scorer = load_scorer(plan.scorer) if plan.scorer else None
    task = bundle.manifest.task
    data = CalibrationData.load(plan.data)
    if data.usable(task) < plan.prompts + plan.held_out:
        raise BadInput(
            f"calibration data {plan.data} has {data.usable(task)} prompts that {task} can use, and {plan.prompts} are for "
            f"the fit and {plan.held_out} to try it; add some, or take fewer"
        )
    bundle.check_hashes()
    pipeline = Pipeline(bundle, EngineOptions(plan.engine))
    requests = [
        replace(request, guidance=plan.guidance, scheduler=plan.scheduler)
        for request in [
            *data.requests(task, plan.prompts, plan.seed, plan.steps),
            *data.last(plan.held_out, task).requests(task, plan.held_out, plan.seed + plan.prompts, plan.steps),
        ]
    ]
    if pipeline.resolve(requests[0]).guidance <= 1:
        raise BadInput(f"guidance is off, and a schedule of {bundle.path} is for guided clips; give --guidance above 1")
    with derive_bundle(bundle, out, (), replace_out, checked=True) as derived:
        with scratch_folder(derived.folder, "trajectories") as folder:
            trajectories = record(pipeline, requests, folder, progress)
            seen, unseen = trajectories[: plan.prompts], HeldOut(pipeline, trajectories[plan.prompts :], scorer)
            made = cheapest(pipeline, name, seen, unseen, budget, plan, progress)
            made = replace(made, measured={**made.measured, "floor_psnr": _floor(pipeline, unseen)})
        (derived.folder / SCHEDULES).mkdir(exist_ok=True)
        (derived.folder / SCHEDULES / f"{name}.json").write_text(made.to_json(), encoding="utf-8")
    return made


def cheapest(
    pipeline: Pipeline,
    name: str,
    seen: Sequence[Trajectory],
    unseen: HeldOut,
    budget: Budget,
    plan: SchedulePlan,
    progress: Progress = SILENT,
) -> Schedule:
    """The schedule with the fewest forwards that keeps ``budget``, fitted on ``seen``; of ``plan``, its order and guard.

    Raises:
        AccuracyError: none does.
    """
    costs = stretch_costs(seen)
    all_rows = 2 * seen[0].resolved.steps

    def tried(most: int) -> Schedule:
        made = schedule_of(
            pipeline,
            name,
            seen[0],
            plan.order,
            *best_fit(pipeline, seen, costs, most, plan.order, plan.guard, progress),
        )
        return replace(made, measured=unseen.measured(made, progress))

    high = min(all_rows - 1, int(budget.share * all_rows))
    made = tried(high)
    # Clips of which it was given up count as well.
    while "forwards" in budget and budget.share < (took := made.measured["forwards"]) and high > 2:
        high = max(2, high - math.ceil((took - budget.share) * all_rows / 2))
        made = tried(high)
    best, low = (made if _keeps(budget, made) else None), 2
    if best is None:
        measured = made.measured
        raise AccuracyError(
            f"no schedule keeps {budget}: {measured['forwards']:.0%} of the forwards come to {measured['psnr']} dB "
            f"({measured['psnr_p5']} at the 5th percentile, relative L2 {measured['rel_l2']:.3g}); give a wider budget"
        )
    if budget.only("forwards"):
        return best
    with progress.stage("search", (high - low).bit_length()) as advance:
        while low < high:
            middle = (low + high) // 2
            made = tried(middle)
            if _keeps(budget, made):
                high = middle
                best = min(best, made, key=lambda each: float(each.measured["forwards"]))
            else:
                low = middle + 1
            advance()
    return best


def _keeps(budget: Budget, made: Schedule) -> bool:
    """Whether it keeps the budget, and saves anything: one that nearly every clip gives up would be near enough, and cost more."""
    return budget.kept(made.measured) and made.measured["forwards"] < 1


def schedule_of(pipeline: Pipeline, name: str, clip: Trajectory, order: int, kinds: str, found: Fit) -> Schedule:
    """The schedule of these kinds and their fit, for clips like ``clip``."""
    resolved = clip.resolved
    return Schedule(
        name=name,
        kinds=kinds,
        order=order,
        coefficients=found.coefficients,
        checks=found.checks,
        bounds=found.bounds,
        transformer=pipeline.bundle.component_digest("transformer"),
        scheduler=scheduler_facts(resolved),
        size=str(resolved.size),
        guidance=(resolved.guidance, resolved.guidance),
    )


def _floor(pipeline: Pipeline, unseen: HeldOut) -> float | None:
    """The noise floor: another engine's PSNR; None where no other runs the bundle here."""
    bundle = pipeline.bundle
    names = (name for name in onnx_engines() if name != pipeline.engine.name and why_not(bundle, name) is None)
    other = next(names, None)
    return unseen.floor(Pipeline(bundle, EngineOptions(other))) if other else None
