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

from reelquant.quant.calibration.channels import BINS
from reelquant.quant.calibration.ranges import Ranges
from reelquant.quant.graph.attentions import Attention, attention_nodes
from reelquant.quant.graph.linears import Linear, family, linear_nodes, quantized_source
from reelquant.quant.methods.balance import balance, identity
from reelquant.quant.methods.method import Method
from reelquant.quant.methods.observers import threshold
from reelquant.quant.methods.primitives import scale_from_absmax
from reelquant.quant.methods.treatment import Treatment
from reelquant.quant.numerics import (
    FP8_E4M3,
    HIGH,
    INT8,
    Blocked,
    BlockQuantized,
    Format,
    High,
    Numerics,
    Quantized,
    WeightOnly,
)
from reelquant.quant.passes.nvfp4 import OPSET, quantize_blocks
from reelquant.quant.passes.qdq import QdqInserter
from reelquant.quant.recipe import Recipe
from reelquant.runtime.errors import BadInput, BundleError
from reelquant.runtime.progress import SILENT, Progress

# Smaller products have no 8-bit kernel on tensor cores (reference: ModelOpt's changelog).
_SMALLEST_SIDE = 16
# The lowest that tests run; FP8 came to Q/DQ with 19.
_LOWEST_OPSET = 21
_NO_HISTOGRAM = np.zeros(BINS, np.int64)


Chosen = Quantized | WeightOnly | BlockQuantized


@dataclass
class QdqReport:
    """What became of every linear and attention, by name; ``skipped`` maps to the reason.

    ``families`` counts fates by name without block number, as ``transformer_blocks.*.ff.net.2``.
    """

    quantized: list[str] = field(default_factory=list)
    weight_only: list[str] = field(default_factory=list)
    kept_high: list[str] = field(default_factory=list)
    attentions: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    activations: int = 0
    families: dict[str, Counter[str]] = field(default_factory=dict)

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

    ``base`` is what the float32 ``model`` will compute in at last ("fp32", "fp16", "bf16"): scales fit it. Weights that
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
    if any(isinstance(numerics, BlockQuantized) for _, numerics in chosen):
        model.opset_imports.update({"": max(OPSET, model.opset_imports[""]), "trt": 1})
    with progress.stage("quantize", len(chosen)) as advance:
        for group in _groups(chosen, recipe):
            _quantize_group(inserter, group, ranges)
            for _ in group.linears:
                advance()
    for attention in whole:
        _quantize_attention(inserter, attention, ranges, recipe.method.observer)
    report.activations = inserter.activations
    inserter.remove_unused_weights()
    return report


@dataclass
class _Group:
    """Linears that read one activation in one way."""

    activation: str
    numerics: Chosen
    method: Method
    linears: list[Linear] = field(default_factory=list)


def _groups(chosen: list[tuple[Linear, Chosen]], recipe: Recipe) -> list[_Group]:
    groups: dict[tuple[str, Chosen, Method], _Group] = {}
    for linear, numerics in chosen:
        key = (linear.activation, numerics, recipe.method_of(linear.name))
        groups.setdefault(key, _Group(*key)).linears.append(linear)
    return list(groups.values())


def _quantize_group(inserter: QdqInserter, group: _Group, ranges: Ranges) -> None:
    name, numerics, method = group.activation, group.numerics, group.method
    if isinstance(numerics, BlockQuantized):
        for linear in group.linears:
            quantize_blocks(inserter, linear, numerics, ranges.absmax(name))
        return
    channels = ranges.channels.get(name)
    balanced, treatment, scale = None, None, None
    if isinstance(numerics, Quantized):
        format = numerics.format
        if method.balances and channels is not None:
            weights = [inserter.matrix(linear) for linear in group.linears]
            balanced = balance(channels, weights, method.strength or 0.0, method.shift, inserter.base)
            absmax = balanced.absmax
        else:
            absmax = _threshold(ranges, name, method.observer, format)
        scale = inserter.rounded(scale_from_absmax(absmax, format))
    if channels is not None and (method.balances or method.rounding == "gptq"):
        noise = float(scale) ** 2 / 12 if scale is not None and numerics.format == INT8 else 0.0
        treatment = Treatment(channels, balanced or identity(channels), noise, method.rounding == "gptq")
    for linear in group.linears:
        if scale is not None:
            inserter.activation(linear.node, 0, name, scale, numerics.format, balanced)
        stored = numerics.weight_format if isinstance(numerics, Quantized) else None
        inserter.weight(linear, stored or numerics.format, numerics.weights, treatment)


def _threshold(ranges: Ranges, name: str, observer: str, format: Format) -> float:
    return threshold(observer, ranges.absmax(name), ranges.histograms.get(name, _NO_HISTOGRAM), format)


def _chosen_linears(linears: list[Linear], recipe: Recipe, report: QdqReport) -> list[tuple[Linear, Chosen]]:
    chosen: list[tuple[Linear, Chosen]] = []
    for linear in linears:
        numerics: Numerics = recipe.resolve(linear.name)
        if numerics == HIGH:
            report.add(linear.name, "kept_high")
        elif min(linear.shape) < _SMALLEST_SIDE:
            report.skip(linear.name, f"{linear.shape[0]}×{linear.shape[1]} has a side under {_SMALLEST_SIDE}")
        elif isinstance(numerics, BlockQuantized) and (linear.transposed or linear.shape[0] % numerics.blocks.size):
            report.skip(linear.name, f"NVFP4 takes a MatMul whose inner side is a multiple of {numerics.blocks.size}")
        elif isinstance(numerics, WeightOnly) and _uneven(linear, numerics):
            report.skip(linear.name, f"its inner side, {linear.shape[0]}, is not a multiple of the block's")
        elif not isinstance(numerics, High):
            report.add(linear.name, "weight_only" if isinstance(numerics, WeightOnly) else "quantized")
            chosen.append((linear, numerics))
    return chosen


def _uneven(linear: Linear, numerics: WeightOnly) -> bool:
    return isinstance(numerics.weights, Blocked) and linear.shape[0] % numerics.weights.size != 0


def _chosen_attentions(attentions: list[Attention], recipe: Recipe, report: QdqReport) -> list[Attention]:
    chosen = []
    for attention in attentions:
        numerics = recipe.resolve(attention.name)
        if not isinstance(numerics, Quantized):
            continue
        if numerics.format != FP8_E4M3:
            report.skip(attention.name, f"no engine fuses a {numerics.format.name} attention at video lengths")
            continue
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
        scale = scale_from_absmax(_threshold(ranges, name, observer, FP8_E4M3), FP8_E4M3)
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


def _check_ranges(
    ranges: Ranges, linears: list[tuple[Linear, Chosen]], attentions: list[Attention], recipe: Recipe
) -> None:
    needed = {linear.activation for linear, numerics in linears if not isinstance(numerics, WeightOnly)}
    needed |= {name for attention in attentions for name in (attention.query, attention.key, attention.value)}
    channels = {
        linear.activation
        for linear, numerics in linears
        if recipe.method_of(linear.name).needs_channels(isinstance(numerics, WeightOnly))
        and not isinstance(numerics, BlockQuantized)
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
