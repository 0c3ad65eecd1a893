"""Trajectories → the cheapest schedule that keeps a budget, tried on clips that the fit did not see."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from reelquant.quant.calibration.data import CalibrationData
from reelquant.quant.derive import derive_bundle
from reelquant.quant.schedule.fit import fit
from reelquant.quant.schedule.search import Costs, best_kinds, pruned
from reelquant.quant.schedule.trajectories import Floats, Trajectory, record
from reelquant.runtime.bundle import SCHEDULES, Bundle
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.errors import AccuracyError, BadInput
from reelquant.runtime.files.atomic import check_free, scratch_folder
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.progress import SILENT, Progress
from reelquant.runtime.sampling.denoise import denoise
from reelquant.runtime.sampling.schedule import Schedule, scheduler_facts
from reelquant.runtime.sampling.stepper import Work

_FORM = re.compile(r"\s*(psnr|rel_l2|forwards)\s*(<=|>=)\s*([0-9]+(?:\.[0-9]*)?(?:e-?[0-9]+)?)\s*")
_SENSE = {"psnr": ">=", "rel_l2": "<=", "forwards": "<="}


@dataclass(frozen=True)
class Limit:
    """``kind`` is "psnr" (dB, frames to those of the whole sampling, mean over held-out clips), "rel_l2" (of final latents, likewise) or
    "forwards" (share of the whole sampling's).
    """

    kind: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Raises:
        BadInput: not of this form, or a share of forwards that is not above 0 and at most 1.
        """
        found = _FORM.fullmatch(text)
        if found is None or found[2] != _SENSE[found[1]] or float(found[3]) <= 0:
            raise BadInput(f"budget {text!r} is none of: psnr>=37, rel_l2<=0.02, forwards<=0.4")
        if found[1] == "forwards" and float(found[3]) > 1:
            raise BadInput(f"budget {text!r}: forwards are a share of the whole sampling's, at most 1")
        return cls(found[1], float(found[3]))

    def __str__(self) -> str:
        return f"{self.kind}{_SENSE[self.kind]}{self.value:g}"

    def kept(self, measured: dict[str, Any]) -> bool:
        """Whether what was measured on held-out clips keeps it."""
        return bool(measured["psnr"] >= self.value if self.kind == "psnr" else measured[self.kind] <= self.value)


@dataclass(frozen=True)
class SchedulePlan:
    """Of which clips a schedule is made: fitted on the first ``prompts`` of ``data``, tried on the last ``held_out``."""

    data: str = "general"
    prompts: int = 12
    held_out: int = 6
    steps: int | None = None
    guidance: float | None = None
    scheduler: str | None = None
    seed: int = 0
    order: int = 2
    engine: str | None = None


def make_schedule(
    bundle: Bundle,
    out: Path,
    name: str,
    limit: Limit,
    plan: SchedulePlan,
    replace_out: bool = False,
    progress: Progress = SILENT,
) -> Schedule:
    """Write ``out``: ``bundle`` with one schedule more, the one with the fewest forwards that keeps ``limit``.

    Raises:
        BadInput: too few prompts or images, guidance is off, or ``out`` is taken.
        AccuracyError: no schedule keeps the limit.
    """
    check_free(out, replace_out)
    task = bundle.manifest.task
    data = CalibrationData.load(plan.data)
    if data.usable(task) < plan.prompts + plan.held_out:
        raise BadInput(
            f"calibration data {plan.data} has {data.usable(task)} prompts that {task} can use, and {plan.prompts} are for "
            f"the fit and {plan.held_out} to try it; add some, or take fewer"
        )
    bundle.check_hashes()
    pipeline = Pipeline(bundle, EngineOptions(plan.engine))
    steps = plan.steps or bundle.manifest.defaults.steps
    requests = [
        replace(request, guidance=plan.guidance, scheduler=plan.scheduler)
        for request in [
            *data.requests(task, plan.prompts, plan.seed, steps),
            *data.last(plan.held_out, task).requests(task, plan.held_out, plan.seed + plan.prompts, steps),
        ]
    ]
    if pipeline.resolve(requests[0]).guidance <= 1:
        raise BadInput(f"guidance is off, and a schedule of {bundle.path} is for guided clips; give --guidance above 1")
    with derive_bundle(bundle, out, (), replace_out, checked=True) as derived:
        with scratch_folder(derived.folder, "trajectories") as folder:
            trajectories = record(pipeline, requests, folder, progress)
            seen, unseen = trajectories[: plan.prompts], trajectories[plan.prompts :]
            made = search(pipeline, bundle, name, seen, unseen, limit, plan, progress)
        (derived.folder / SCHEDULES).mkdir(exist_ok=True)
        (derived.folder / SCHEDULES / f"{name}.json").write_text(made.to_json(), encoding="utf-8")
    return made


def search(
    pipeline: Pipeline,
    bundle: Bundle,
    name: str,
    seen: Sequence[Trajectory],
    unseen: Sequence[Trajectory],
    limit: Limit,
    plan: SchedulePlan,
    progress: Progress,
) -> Schedule:
    """The schedule with the fewest computed steps that keeps ``limit``.

    Raises:
        AccuracyError: none does.
    """
    costs = Costs(seen, plan.order)
    found, all_rows = pruned(costs), 2 * costs.steps
    whole = [pipeline.decode(_cut(pipeline, each, each.final)) for each in unseen]

    def tried(most: int) -> Schedule:
        made = fitted(pipeline, bundle, name, seen, best_kinds(costs, most, found), plan)
        return _measured(pipeline, made, unseen, whole)

    if limit.kind == "forwards":
        return tried(int(limit.value * all_rows))
    low, high, best = 2, all_rows - 1, None
    with progress.stage("search", int(np.ceil(np.log2(all_rows)))) as advance:
        while low <= high:
            middle = (low + high) // 2
            made = tried(middle)
            if limit.kept(dict(made.measured)):
                best, high = made, middle - 1
            else:
                low = middle + 1
            advance()
    if best is None:
        raise AccuracyError(f"no schedule of {bundle.path} with fewer forwards keeps {limit}; give a wider budget")
    return best


def fitted(
    pipeline: Pipeline, bundle: Bundle, name: str, seen: Sequence[Trajectory], kinds: str, plan: SchedulePlan
) -> Schedule:
    """A schedule of these kinds, fitted on ``seen``."""
    found, resolved = fit(pipeline, seen, kinds, plan.order), seen[0].resolved
    guidance = resolved.guidance
    return Schedule(
        name=name,
        kinds=kinds,
        order=plan.order,
        coefficients=found.coefficients,
        checks=found.checks,
        bounds=found.bounds,
        transformer=bundle.component_digest("transformer"),
        scheduler=scheduler_facts(resolved),
        size=str(resolved.size),
        guidance=(guidance, guidance),
    )


def _measured(pipeline: Pipeline, made: Schedule, unseen: Sequence[Trajectory], whole: Sequence[Any]) -> Schedule:
    """The schedule with what it comes to on clips that it was not fitted on."""
    psnrs, errors, forwards, repaired = [], [], [], 0
    for each, frames in zip(unseen, whole, strict=True):
        work = Work()
        conditioning = replace(each.conditioning, run=each.run())
        latents = denoise(pipeline.transformer(), conditioning, schedule=made, work=work)
        found = pipeline.decode(_cut(pipeline, each, latents))
        psnrs.append(_psnr(found, frames))
        errors.append(float(np.linalg.norm(latents - each.final) / np.linalg.norm(each.final)))
        forwards.append(work.forwards / (2 * made.steps))
        repaired += work.repaired
    measured = {
        "psnr": round(float(np.mean(psnrs)), 2),
        "psnr_p5": round(float(np.percentile(psnrs, 5)), 2),
        "psnr_least": round(min(psnrs), 2),
        "rel_l2": float(np.mean(errors)),
        "forwards": float(np.mean(forwards)),
        "clips": len(psnrs),
        "repaired": repaired,
    }
    return replace(made, measured=measured)


def _cut(pipeline: Pipeline, trajectory: Trajectory, latents: Floats) -> Floats:
    """Without the frames that CogVideoX 1.5 puts before a clip."""
    return latents[-pipeline.model.geometry.latent_frames(trajectory.resolved.size) :]


def _psnr(found: Any, wanted: Any) -> float:
    error = np.mean(np.square(found.astype(np.float64) - wanted))
    return float(10 * np.log10(255**2 / max(float(error), 1e-9)))
