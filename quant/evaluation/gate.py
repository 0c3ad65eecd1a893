"""The gate: is a quantized bundle still as good as its fp32 reference, and if not, which layer is to blame?

Steps of the reference's own clips are run by both (teacher forcing), on the engine that will run the bundle. Whole runs say
what a user would get; half a block at a time, each on the reference's values, says where it was lost: an error that one layer
makes is not drowned by the others'. Each linear is also run on the reference engine, fed what the engine's own was: one that computes
something else than the graph says, sums that saturate for example, is found out by that, however small the whole error is.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from reelquant.quant.evaluation.limits import BASES, Limits
from reelquant.quant.evaluation.lockstep import Part, lockstep
from reelquant.quant.evaluation.teacher import Difference, Step, velocities
from reelquant.quant.graph.graph_files import WEIGHTS, load_graph
from reelquant.quant.graph.linears import linear_nodes
from reelquant.quant.graph.scratch_session import scratch_session
from reelquant.quant.numerics import NUMERICS, High
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.engine import REFERENCE_ENGINE
from reelquant.runtime.engines.registry import get_engine
from reelquant.runtime.engines.session import BF16_KEY
from reelquant.runtime.errors import BadInput
from reelquant.runtime.progress import SILENT, Progress

# A quantized run that is closer than this to its reference was not quantized.
_LEAST = 1e-4


@dataclass(frozen=True)
class Fault:
    """``where`` is a linear, half of a block, or "transformer" for the whole run."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True)
class Run:
    """One step of one clip."""

    clip: int
    timestep: int
    difference: Difference


@dataclass(frozen=True)
class Verdict:
    """``engine`` is where the bundle was judged. ``faults`` in graph order, the first bad layer first; none for a good bundle."""

    engine: str
    runs: tuple[Run, ...]
    parts: tuple[Part, ...]
    limits: Limits
    faults: tuple[Fault, ...]

    @property
    def dead(self) -> tuple[str, ...]:
        """Quantized linears that were fed nothing but zeros: pruned, or behind something that is."""
        return tuple(name for part in self.parts for name in part.dead)

    @property
    def worst(self) -> Difference:
        """The most relative L2 and the least cosine of all runs; of one that is not finite where there is such."""
        found = [run.difference for run in self.runs]
        broken = [each for each in found if not each.finite]
        return broken[0] if broken else Difference(max(f.rel_l2 for f in found), min(f.cosine for f in found))

    def as_json(self) -> dict[str, Any]:
        """What is not finite is null."""
        linears = [difference.rel_l2 for part in self.parts for difference in part.linears.values()]
        apart = [difference.rel_l2 for part in self.parts for difference in part.engine.values()]
        return {
            "engine": self.engine,
            "reference_engine": REFERENCE_ENGINE,
            "rel_l2": _number(self.worst.rel_l2),
            "cosine": _number(self.worst.cosine),
            "part_rel_l2": _most([part.difference.rel_l2 for part in self.parts]),
            "linear_rel_l2": _most(linears),
            "engine_rel_l2": 0.0 if self.engine == REFERENCE_ENGINE else _most(apart),
            "dead": list(self.dead),
            "reach": _most([reach for part in self.parts for reach in part.reach.values()]),
            "limits": asdict(self.limits),
            "linears": {
                name: _number(difference.rel_l2) for part in self.parts for name, difference in part.linears.items()
            },
            "faults": [asdict(fault) for fault in self.faults],
            "runs": [
                {
                    "clip": run.clip,
                    "timestep": run.timestep,
                    "rel_l2": _number(run.difference.rel_l2),
                    "cosine": _number(run.difference.cosine),
                }
                for run in self.runs
            ],
        }


def check_reference(bundle: Bundle, reference: Bundle, engine: str) -> Limits:
    """See, before any work, that the gate can hold ``bundle`` against ``reference``; return the limits of what it computes in.

    Raises:
        BadInput: it has no limits, being float32 or of a format that no CPU computes, the engine cannot run it, or
            ``reference`` is not float32 or of another model.
    """
    get_engine(engine).check_runs(bundle)
    ours, theirs = bundle.manifest, reference.manifest
    if theirs.precision != "fp32":
        raise BadInput(f"{reference.path} is {theirs.precision}; give the fp32 bundle that {bundle.path} was made from")
    if (ours.task, ours.transformer) != (theirs.task, theirs.transformer):
        raise BadInput(
            f"{bundle.path} and {reference.path} are not of one model; give the fp32 bundle that it was made from"
        )
    limits = limits_of(ours.components["transformer"].formats, ours.base)
    if limits is None:
        raise BadInput(f"{bundle.path} is {ours.precision}, which loses nothing; give a quantized bundle")
    return limits


def limits_of(formats: Collection[str], base: str) -> Limits | None:
    """The limits of a transformer with these numerics, by name: those of the coarsest; without any, those of the base.

    None where the base is float32, or where no CPU computes one of them.
    """
    limits = [numerics.limits for name in formats if not isinstance(numerics := NUMERICS[name], High)]
    known = [each for each in limits if each is not None]
    if len(known) < len(limits):
        return None
    return max(known, key=lambda each: each.step) if known else BASES.get(base)


def gate(bundle: Bundle, reference: Bundle, steps: Sequence[Step], engine: str, progress: Progress = SILENT) -> Verdict:
    """Hold ``bundle`` against ``reference`` on ``steps`` of the reference (:func:`reelquant.quant.evaluation.teacher.record_steps`), on the
    engine that will run it.

    Raises:
        BadInput: as :func:`check_reference`.
        BundleError: a file was changed, or the transformers have different blocks.
    """
    limits = check_reference(bundle, reference, engine)
    for each in (bundle, reference):
        each.check_hashes(lambda name: name.startswith("transformer/"))
    other, teacher = (each.graph("transformer", "main") for each in (bundle, reference))
    return judge(other, teacher, limits, bundle.manifest.quantization is not None, steps, engine, progress)


def judge(
    other: Path,
    teacher: Path,
    limits: Limits,
    quantized: bool,
    steps: Sequence[Step],
    engine: str,
    progress: Progress = SILENT,
) -> Verdict:
    """Hold the graph ``other`` against ``teacher``, ONNX files whose weights lie beside them. A ``quantized`` one must differ.

    Raises:
        BundleError: the graphs have different blocks.
    """
    runs = []
    with (
        progress.stage("gate", len(steps)) as advance,
        scratch_session(load_graph(other), other.parents[1], engine, other.parent / WEIGHTS) as session,
    ):
        for step, velocity in zip(steps, velocities(session, steps), strict=True):
            runs.append(Run(step.clip, step.timestep, Difference.of(velocity, step.velocity)))
            advance()
    parts = []
    with progress.stage("gate, layer by layer") as advance:
        for part in lockstep(teacher, other, [step.feeds for step in steps], engine):
            parts.append(part)
            advance()
    faults = tuple(fault for part in parts for fault in _of_part(part, limits, engine))
    verdict = Verdict(engine, tuple(runs), tuple(parts), limits, faults)
    alive = any(part.reach.keys() - set(part.dead) for part in parts) or not verdict.dead
    found = _of_run(verdict.worst, limits, quantized and alive)
    if quantized and not found and _is_bare(load_graph(other)):
        found = [Fault("transformer", "none of its linears reads a quantized value: nothing was quantized")]
    return replace(verdict, faults=(*verdict.faults, *found))


def _is_bare(model: ir.Model) -> bool:
    """Whether ``model`` may be computed in bf16, which hides from its runs that nothing of it is quantized, and nothing is."""
    if BF16_KEY not in model.metadata_props:
        return False
    read = [value.producer() for linear in linear_nodes(model) for value in linear.node.inputs if value is not None]
    return all(node is None or node.op_type != "DequantizeLinear" for node in read)


def _of_part(part: Part, limits: Limits, engine: str) -> list[Fault]:
    found = []
    for name, difference in part.linears.items():
        reach = part.reach.get(name, 1.0)
        if not difference.finite:
            found.append(Fault(name, "its output is not finite: a weight or a scale is infinite or NaN"))
        elif difference.rel_l2 > limits.linear:
            said = f"its output differs by {difference.rel_l2:.3f} from the reference's on the same input"
            found.append(Fault(name, f"{said}; {limits.linear} is the limit"))
        elif name in part.engine and not part.engine[name].rel_l2 <= limits.engine:
            said = f"{engine} computes something else than the graph says: its output differs by"
            found.append(
                Fault(
                    name,
                    f"{said} {part.engine[name].rel_l2:.4f} from {REFERENCE_ENGINE}'s on the same input; {limits.engine} is "
                    "the limit",
                )
            )
        elif reach > limits.reach:
            found.append(Fault(name, f"its activation's scale reaches {reach:.1f} times the largest value: too coarse"))
    if not found and not (part.difference.finite and part.difference.rel_l2 <= limits.part):
        said = f"what it hands on differs by {part.difference.rel_l2:.3f} from the reference's on the same input"
        found.append(Fault(part.where, f"{said}, and no linear does; {limits.part} is the limit"))
    return found


def _of_run(worst: Difference, limits: Limits, quantized: bool) -> list[Fault]:
    if not worst.finite:
        return [Fault("transformer", "a run is not finite")]
    found = []
    if worst.rel_l2 > limits.step or worst.cosine < limits.cosine:
        said = f"a run differs by {worst.rel_l2:.3f} from the reference's (cosine {worst.cosine:.4f})"
        found.append(Fault("transformer", f"{said}; {limits.step} and {limits.cosine} are the limits"))
    if quantized and worst.rel_l2 < _LEAST:
        found.append(Fault("transformer", f"it is the reference within {worst.rel_l2:.1e}: nothing was quantized"))
    return found


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _most(values: Sequence[float]) -> float | None:
    return max((value for value in values if math.isfinite(value)), default=None)
