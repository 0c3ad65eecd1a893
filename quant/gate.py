"""The gate: is a quantized bundle still its high-precision twin, and if not, which layer is to blame?

Steps of the twin's own clips are run by both (teacher forcing). Whole runs say what a user would get; half a block at a
time, each on the twin's values, says where it was lost: an error that one layer makes is not drowned by the others'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from reelquant.quant.lockstep import Part, lockstep
from reelquant.quant.teacher import Difference, Step, step_differences
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.errors import BadInput
from reelquant.runtime.graphs import check_base, open_graphs
from reelquant.runtime.progress import SILENT, Progress


@dataclass(frozen=True)
class Limits:
    """The most relative L2 of a whole run, of what half a block hands on, and of a linear's output; the least cosine of a
    run; and the most that a scale may reach beyond the largest value seen.
    """

    step: float
    part: float
    linear: float
    cosine: float
    reach: float


# About four times what the demo's good bundles show at most, so that a limit speaks of faults and not of taste.
LIMITS = {
    "fp16": Limits(0.01, 0.005, 0.005, 0.9999, 4.0),
    "bf16": Limits(0.08, 0.04, 0.04, 0.996, 4.0),
    "int8": Limits(0.10, 0.07, 0.20, 0.995, 4.0),
    "fp8": Limits(0.15, 0.12, 0.27, 0.99, 4.0),
}
# A quantized run that is closer than this to its twin was not quantized.
_LEAST = 1e-4


@dataclass(frozen=True)
class Fault:
    """``where`` is a linear, half of a block, or "transformer" for the whole run."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True)
class Verdict:
    """``faults`` in graph order, the first bad layer first; none for a good bundle. ``worst`` is of whole runs, ``part`` and
    ``linear`` are the most relative L2 of half a block and of a linear.
    """

    steps: int
    worst: Difference
    part: float
    linear: float
    limits: Limits
    faults: tuple[Fault, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "rel_l2": self.worst.rel_l2,
            "cosine": self.worst.cosine,
            "part_rel_l2": self.part,
            "linear_rel_l2": self.linear,
            "limits": asdict(self.limits),
            "faults": [asdict(fault) for fault in self.faults],
        }


def limits_of(bundle: Bundle) -> Limits:
    """Those of what the bundle's transformer computes in.

    Raises:
        BadInput: it has no limits, being float32 or of a format that no CPU computes.
    """
    stats = bundle.manifest.components["transformer"].stats["main"]
    stored: Mapping[str, int] = stats["weight_bytes_by_dtype"]
    quantized = bundle.manifest.quantization is not None
    formats = {"INT8": "int8", "FLOAT8E4M3FN": "fp8"}
    name = next((formats[dtype] for dtype in formats if quantized and dtype in stored), bundle.manifest.base)
    if name not in LIMITS:
        raise BadInput(f"{bundle.path} is {bundle.manifest.precision}, which loses nothing; give a quantized bundle")
    return LIMITS[name]


def gate(bundle: Bundle, twin: Bundle, steps: Sequence[Step], engine: str, progress: Progress = SILENT) -> Verdict:
    """Hold ``bundle`` against ``twin`` on ``steps`` of the twin (:func:`reelquant.quant.teacher.record_steps`).

    Raises:
        BadInput: the bundle has no limits, the engine cannot run it, or it reads what the twin does not.
        BundleError: a file was changed, or the transformers have different blocks.
    """
    check_base(bundle, engine)
    limits = limits_of(bundle)
    with progress.stage("gate", len(steps)) as advance:
        plan = open_graphs(bundle, "transformer", engine, "main")["main"]
        if missing := sorted(set(plan.inputs) - steps[0].feeds.keys()):
            raise BadInput(f"{bundle.path} reads {missing[0]}, which {twin.path} does not: it was not made from it")
        runs = []
        for difference in step_differences(plan, steps):
            runs.append(difference)
            advance()
        del plan
    twin.check_hashes(lambda name: name.startswith("transformer/"))
    paths = (twin.graph("transformer", "main"), bundle.graph("transformer", "main"))
    parts = list(lockstep(*paths, [step.feeds for step in steps], engine))
    faults = [fault for part in parts for fault in _of_part(part, limits)]
    bad = [run for run in runs if not run.finite]
    worst = bad[0] if bad else Difference(max(run.rel_l2 for run in runs), min(run.cosine for run in runs))
    faults += _of_run(worst, limits, bundle.manifest.quantization is not None)
    part = max(each.difference.rel_l2 for each in parts)
    linear = max(difference.rel_l2 for each in parts for difference in each.linears.values())
    return Verdict(len(steps), worst, part, linear, limits, tuple(faults))


def _of_part(part: Part, limits: Limits) -> list[Fault]:
    found = []
    for name, difference in part.linears.items():
        reach = part.reach.get(name, 1.0)
        if not difference.finite:
            found.append(Fault(name, "its output is not finite: a weight or a scale is infinite or NaN"))
        elif difference.rel_l2 > limits.linear:
            said = f"its output differs by {difference.rel_l2:.3f} from its twin's on the same input"
            found.append(Fault(name, f"{said}; {limits.linear} is the limit"))
        elif reach > limits.reach:
            found.append(Fault(name, f"its activation's scale reaches {reach:.1f} times the largest value: too coarse"))
    if not found and not (part.difference.finite and part.difference.rel_l2 <= limits.part):
        said = f"what it hands on differs by {part.difference.rel_l2:.3f} from its twin's on the same input"
        found.append(Fault(part.where, f"{said}, and no linear does; {limits.part} is the limit"))
    return found


def _of_run(worst: Difference, limits: Limits, quantized: bool) -> list[Fault]:
    if not worst.finite:
        return [Fault("transformer", "a run is not finite")]
    found = []
    if worst.rel_l2 > limits.step or worst.cosine < limits.cosine:
        said = f"a run differs by {worst.rel_l2:.3f} from its twin's (cosine {worst.cosine:.4f})"
        found.append(Fault("transformer", f"{said}; {limits.step} and {limits.cosine} are the limits"))
    if quantized and worst.rel_l2 < _LEAST:
        found.append(Fault("transformer", f"it is its twin within {worst.rel_l2:.1e}: nothing was quantized"))
    return found
