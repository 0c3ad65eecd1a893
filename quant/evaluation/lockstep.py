"""Run two graphs of one network side by side, half a block at a time, the second always on the first one's values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from reelquant.quant.evaluation.teacher import Difference
from reelquant.quant.formats import FP8_E4M3, INT8
from reelquant.quant.graph.graph_files import WEIGHTS, load_graph
from reelquant.quant.graph.linears import Linear, linear_nodes, output_of, quantized_source, quantizer_of
from reelquant.quant.graph.segments import segments
from reelquant.runtime.engines.engine import REFERENCE_ENGINE
from reelquant.runtime.engines.registry import open_onnx
from reelquant.runtime.engines.session import Array
from reelquant.runtime.errors import BundleError
from reelquant.runtime.files.atomic import link_or_copy, scratch_folder


@dataclass(frozen=True)
class Part:
    """Half a block, or what stands before and after the blocks: the worst difference of what it hands on, over all steps,
    and of each linear's output with its bias, in graph order. ``reach`` is how far a quantized linear's activation could go, as a multiple
    of the largest that it was: below 1, values were cut off; far above, the steps are coarse. ``engine`` is how far each
    linear's output on the engine is from the reference engine's, fed the engine's activation: empty where that is the
    engine. ``dead`` are quantized linears that were fed nothing but zeros, so that nothing can be lost in them.
    """

    number: int
    difference: Difference
    linears: Mapping[str, Difference]
    reach: Mapping[str, float]
    engine: Mapping[str, Difference]
    dead: tuple[str, ...]

    @property
    def where(self) -> str:
        return f"transformer_blocks.{self.number // 2} ({'feed-forward' if self.number % 2 else 'attention'})"


def lockstep(teacher: Path, other: Path, samples: Sequence[Mapping[str, Array]], engine: str) -> Iterator[Part]:
    """Compare the graphs ``teacher`` and ``other``, ONNX files whose weights lie beside them, on ``samples``; and ``engine``,
    which runs the second, with the reference engine, which runs both.

    Raises:
        BundleError: the second is not made from the first: it has other blocks, or hands on other values.
    """
    values = [dict(sample) for sample in samples]
    with scratch_folder(other.parents[1], "lockstep") as folder:
        sides = {}
        for side, path in (("teacher", teacher), ("other", other)):
            (folder / side).mkdir()
            link_or_copy(path.parent / WEIGHTS, folder / side / WEIGHTS)
            sides[side] = list(segments(load_graph(path)))
        if len(sides["teacher"]) != len(sides["other"]):
            raise BundleError(f"{other} has other blocks than {teacher}, so it is not made from it")
        for number, models in enumerate(zip(*sides.values(), strict=True)):
            yield _part(number, dict(zip(sides, models, strict=True)), values, folder, engine)


def _part(
    number: int, models: Mapping[str, ir.Model], values: list[dict[str, Array]], folder: Path, engine: str
) -> Part:
    handed_on = [value.name or "" for value in models["teacher"].graph.outputs]
    linears = {linear.name: output_of(linear).name or "" for linear in linear_nodes(models["teacher"])}
    scales = {linear.name: scale for linear in linear_nodes(models["other"]) if (scale := _scale(linear)) is not None}
    largest = {read: 0.0 for read, _ in scales.values()}
    alone = _linears_alone(models["other"], list(linears.values()))
    sessions = {}
    for side, model in models.items():
        known = {value.name: value for node in model.graph for value in node.outputs}
        lacking = {*handed_on, *linears.values()} - known.keys()
        if lacking:
            raise BundleError(f"the graph lacks {min(lacking)}, which its teacher has; it is not made from it")
        for name in [*linears.values(), *(value.name or "" for value in alone.graph.inputs if side == "other")]:
            if name in known and not known[name].is_graph_output():
                model.graph.outputs.append(known[name])
        path = folder / side / f"{number}.onnx"
        ir.save(model, path)
        sessions[side] = open_onnx(REFERENCE_ENGINE if side == "teacher" else engine, path, lean=True)
    reference = None
    if engine != REFERENCE_ENGINE:
        path = folder / "other" / f"{number}-linears.onnx"
        ir.save(alone, path)
        reference = open_onnx(REFERENCE_ENGINE, path, lean=True)
    worst: dict[str, Difference] = {}
    apart: dict[str, Difference] = {}
    for sample in values:
        wanted, found = (sessions[side].run(_fed(model, sample)) for side, model in models.items())
        for name in {*handed_on, *linears.values()}:
            if wanted[name].dtype.kind == "f":
                each = Difference.of(found[name], wanted[name])
                worst[name] = max(worst.get(name, each), each, key=_badness)
        if reference is not None:
            exact = reference.run(_fed(alone, {**sample, **found}))
            for linear, name in linears.items():
                each = Difference.of(found[name], exact[name])
                apart[linear] = max(apart.get(linear, each), each, key=_badness)
        for name, most in list(largest.items()):
            largest[name] = max(most, float(np.abs(found[name] if name in found else sample[name]).max()))
        # What the second graph alone hands on is made of the first one's values too: a cast of its own, say.
        sample.update({name: found[name] for name in found.keys() - wanted.keys()})
        sample.update({name: wanted[name] for name in handed_on})
    outer = max((worst[name] for name in handed_on if name in worst), key=_badness)
    reach = {name: top / largest[read] for name, (read, top) in scales.items() if largest[read] > 0}
    dead = tuple(name for name, (read, _) in scales.items() if largest[read] == 0)
    return Part(number, outer, {linear: worst[name] for linear, name in linears.items()}, reach, apart, dead)


def _linears_alone(model: ir.Model, outputs: list[str]) -> ir.Model:
    """The part's linears, each from the activation that is quantized, so that the reference engine can be fed the engine's own:
    values that lie on a rounding boundary would else be rounded to one side here and to the other there.
    """
    known = {value.name: value for node in model.graph for value in node.outputs}
    known |= {value.name: value for value in model.graph.inputs}
    read = dict.fromkeys(linear.activation for linear in linear_nodes(model))
    wanted = [known[name] for name in outputs if name in known]
    graph = ir.convenience.extract(model.graph, [known[name] for name in read], wanted)
    graph.opset_imports.update(model.graph.opset_imports)
    return ir.Model(graph, ir_version=model.ir_version)


def _scale(linear: Linear) -> tuple[str, float] | None:
    """What a quantized linear's QuantizeLinear reads, and the largest that it can take: its scale times the format's."""
    source, quantizer = quantized_source(linear.node.inputs[0]), quantizer_of(linear.node.inputs[0])
    if source is None or quantizer is None or quantizer.op_type != "QuantizeLinear":
        return None
    read, scale = quantizer.inputs[:2]
    if read is None or read.name != linear.activation:  # blocks, whose scales are found while it runs
        return None
    format = {ir.DataType.INT8: INT8, ir.DataType.FLOAT8E4M3FN: FP8_E4M3}.get(source.dtype or ir.DataType.FLOAT)
    if scale is None or scale.const_value is None or format is None:
        return None
    return read.name or "", float(scale.const_value.numpy()) * format.largest


def _fed(model: ir.Model, sample: Mapping[str, Array]) -> dict[str, Array]:
    """What a part reads, in its own precision."""
    read = {value.name or "": value.dtype for value in model.graph.inputs}
    return {name: np.asarray(sample[name], dtype.numpy() if dtype else None) for name, dtype in read.items()}


def _badness(difference: Difference) -> float:
    return difference.rel_l2 if difference.finite else float("inf")
