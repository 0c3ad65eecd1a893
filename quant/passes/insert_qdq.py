"""Quantize a transformer by a recipe: linears with stored 8-bit weights, and whole attentions.

An FP8 attention has Q/DQ on Q, K, V *and* on the softmax's output, never on a part of them: engines would then compute
the scores unfused, tens of gigabytes at video lengths. The softmax's scale is 1/448 whatever the data, since its values
lie in 0…1 (as in NVIDIA's ModelOpt).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from reelquant.quant.calibration.ranges import Ranges
from reelquant.quant.formats import FP8_E4M3
from reelquant.quant.graph.attentions import Attention, attention_nodes
from reelquant.quant.graph.linears import Linear, family, linear_nodes, quantized_source
from reelquant.quant.methods.method import Method
from reelquant.quant.methods.primitives import scale_from_absmax
from reelquant.quant.numerics import Group, High, Numerics, Quantized
from reelquant.quant.numerics.static import clipped
from reelquant.quant.passes.qdq import QdqInserter
from reelquant.quant.recipe import Recipe
from reelquant.runtime.errors import BadInput, BundleError
from reelquant.runtime.progress import SILENT, Progress

# Smaller products have no 8-bit kernel on tensor cores (reference: ModelOpt's changelog).
_SMALLEST_SIDE = 16
# The lowest that tests run; FP8 came to Q/DQ with 19.
_LOWEST_OPSET = 21

Chosen = list[tuple[Linear, Numerics]]


@dataclass
class QdqReport:
    """What became of every linear and attention, by name; ``skipped`` maps to the reason.

    ``families`` counts fates by name without block number, as ``transformer_blocks.*.ff.net.2``; ``numerics`` are the names of
    those that were inserted.
    """

    quantized: list[str] = field(default_factory=list)
    weight_only: list[str] = field(default_factory=list)
    kept_high: list[str] = field(default_factory=list)
    attentions: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    activations: int = 0
    families: dict[str, Counter[str]] = field(default_factory=dict)
    numerics: dict[str, Numerics] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """For manifests: how many of each fate, and how many activations have Q/DQ."""
        return {
            "quantized": len(self.quantized),
            "weight_only": len(self.weight_only),
            "kept_high": len(self.kept_high),
            "attentions": len(self.attentions),
            "skipped": len(self.skipped),
            "activations": self.activations,
        }

    def add(self, name: str, fate: str) -> None:
        getattr(self, fate).append(name)
        self.families.setdefault(family(name), Counter())[fate] += 1

    def skip(self, name: str, reason: str) -> None:
        self.skipped[name] = reason
        self.families.setdefault(family(name), Counter())["skipped"] += 1


def insert_qdq(
    model: ir.Model, ranges: Ranges, recipe: Recipe, base: str = "fp32", progress: Progress = SILENT
) -> QdqReport:
    """Quantize, in place, what ``recipe`` names. Biases take what balancing and rounding come to; all else stays as it is.

    ``base`` is what the float32 ``model`` will compute in at last ("fp32", "fp16", "bf16"): scales fit it, and some numerics
    are written in TensorRT's operators where it is one of 16 bit. Weights that
    are balanced or compensated are computed here and held in 8 bit; others when the model is saved, one at a time.

    Raises:
        BadInput: a rule of the recipe matches nothing, the graph is already quantized, or the ranges miss a tensor.
        BundleError: an opset or weight dtype that this pass does not take, or a weight with an infinity or NaN.
    """
    linears, attentions = linear_nodes(model), attention_nodes(model)
    nodes = [node.name or "" for node in model.graph]
    recipe = recipe.for_blocks(nodes)
    recipe.check(nodes, [linear.name for linear in linears], [attention.name for attention in attentions])
    report = QdqReport()
    chosen = _chosen_linears(linears, recipe, report)
    whole = _chosen_attentions(attentions, recipe, report)
    _check(model, [linear for linear, _ in chosen])
    _check_ranges(ranges, chosen, whole, recipe)

    inserter = QdqInserter(model.graph, base)
    _import_operators(model, [numerics for _, numerics in chosen])
    with progress.stage("quantize", len(chosen)) as advance:
        for group in _groups(chosen, recipe):
            group.numerics.insert(inserter, group, ranges)
            for _ in group.linears:
                advance()
    for attention in whole:
        _quantize_attention(inserter, attention, ranges, recipe.method.observer)
    report.activations = inserter.activations
    inserter.remove_unused_weights()
    return report


def _import_operators(model: ir.Model, inserted: list[Numerics]) -> None:
    model.opset_imports[""] = max([model.opset_imports[""], *(numerics.opset for numerics in inserted)])
    if any(operator.startswith("TRT_") for numerics in inserted for operator in numerics.operators):
        model.opset_imports["trt"] = 1


def _groups(chosen: Chosen, recipe: Recipe) -> list[Group]:
    groups: dict[tuple[str, Numerics, Method], Group] = {}
    for linear, numerics in chosen:
        key = (linear.activation, numerics, recipe.method_of(linear.name))
        groups.setdefault(key, Group(*key)).linears.append(linear)
    return list(groups.values())


def _chosen_linears(linears: list[Linear], recipe: Recipe, report: QdqReport) -> Chosen:
    chosen: Chosen = []
    for linear in linears:
        numerics = recipe.resolve(linear.name)
        if isinstance(numerics, High):
            report.add(linear.name, "kept_high")
        elif min(linear.shape) < _SMALLEST_SIDE:
            report.skip(linear.name, f"{linear.shape[0]}×{linear.shape[1]} has a side under {_SMALLEST_SIDE}")
        elif reason := numerics.refuses(linear):
            report.skip(linear.name, reason)
        else:
            report.add(linear.name, "weight_only" if numerics.weight_only else "quantized")
            report.numerics[recipe.named(linear.name)] = numerics
            chosen.append((linear, numerics))
    return chosen


def _chosen_attentions(attentions: list[Attention], recipe: Recipe, report: QdqReport) -> list[Attention]:
    chosen = []
    for attention in attentions:
        numerics = recipe.resolve(attention.name)
        if not isinstance(numerics, Quantized):
            continue
        if not numerics.attends:
            report.skip(attention.name, f"no engine fuses a {numerics.format.name} attention at video lengths")
            continue
        report.numerics[recipe.named(attention.name)] = numerics
        report.add(attention.name, "attentions")
        chosen.append(attention)
    return chosen


def _quantize_attention(inserter: QdqInserter, attention: Attention, ranges: Ranges, observer: str) -> None:
    operands = (
        (attention.scores, 0, attention.query),
        (attention.scores, 1, attention.key),
        (attention.mix, 1, attention.value),
    )
    for node, index, name in operands:
        scale = scale_from_absmax(clipped(ranges, name, observer, FP8_E4M3), FP8_E4M3)
        inserter.activation(node, index, name, scale, FP8_E4M3)
    one = scale_from_absmax(np.float32(1), FP8_E4M3)
    inserter.activation(attention.mix, 0, attention.weights, one, FP8_E4M3)


def _check(model: ir.Model, linears: list[Linear]) -> None:
    opset = model.opset_imports.get("", 0)
    if opset < _LOWEST_OPSET:
        raise BundleError(f"the graph has opset {opset}, and Q/DQ needs {_LOWEST_OPSET} or newer; export it again")
    for linear in linears:
        if quantized_source(linear.node.inputs[1]) is not None:
            raise BadInput(f"{linear.name} is already quantized; start from the bundle that export wrote")
        dtype = model.graph.initializers[linear.weight].dtype
        if dtype != ir.DataType.FLOAT:
            raise BundleError(
                f"{linear.weight} is {dtype}, not FLOAT; quantize the float32 graph, before any 16-bit cast"
            )


def _check_ranges(ranges: Ranges, linears: Chosen, attentions: list[Attention], recipe: Recipe) -> None:
    needed = {linear.activation for linear, numerics in linears if numerics.reads_range}
    needed |= {name for attention in attentions for name in (attention.query, attention.key, attention.value)}
    channels = {
        linear.activation for linear, numerics in linears if numerics.needs_channels(recipe.method_of(linear.name))
    }
    histograms = needed if recipe.method.observer != "minmax" else set()
    for what, missing in (
        ("", needed - ranges.low.keys()),
        ("the channels of ", channels - ranges.channels.keys()),
        ("the histograms of ", histograms - ranges.histograms.keys()),
    ):
        if missing:
            raise BadInput(
                f"the ranges miss {what}{len(missing)} activations of this graph, such as {min(missing)!r}; "
                "calibrate again, from the bundle that is quantized"
            )
