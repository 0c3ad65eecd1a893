"""Quantize linears: weights are stored in 8 bit, and activations go through Q/DQ with calibrated scales.

    x → QuantizeLinear → DequantizeLinear → MatMul ← DequantizeLinear ← 8-bit weight

Nothing stands between DequantizeLinear and MatMul, or engines would not fuse the two into an 8-bit product.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from reelquant.quant.linears import Linear, linear_nodes, quantized_source
from reelquant.quant.numerics import Format, Granularity, PerChannel, PerTensor, Quantized
from reelquant.quant.primitives import Floats, quantize, scale_from_absmax, weight_scales
from reelquant.quant.ranges import Ranges
from reelquant.quant.recipe import Recipe
from reelquant.runtime.errors import BadInput, BundleError

# Smaller products have no 8-bit kernel on tensor cores (reference: ModelOpt's changelog).
_SMALLEST_SIDE = 16
# The lowest that tests run; FP8 came to Q/DQ with 19.
_LOWEST_OPSET = 21


@dataclass
class QdqReport:
    """What became of every linear, by name; ``skipped`` maps to the reason, ``families`` counts the three fates."""

    quantized: list[str] = field(default_factory=list)
    kept_high: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    activations: int = 0
    families: dict[str, Counter[str]] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """For manifests: how many were quantized, kept high and skipped, and how many activations have Q/DQ."""
        return {
            "quantized": len(self.quantized),
            "kept_high": len(self.kept_high),
            "skipped": len(self.skipped),
            "activations": self.activations,
        }


def insert_qdq(model: ir.Model, ranges: Ranges, recipe: Recipe) -> QdqReport:
    """Quantize, in place, the linears that ``recipe`` names; biases and everything else stay as they are.

    8-bit weights are computed when the model is saved, one at a time, so a model larger than memory passes.

    Raises:
        BadInput: a rule of the recipe matches nothing, the graph is already quantized, or the ranges miss a tensor.
        BundleError: an opset or weight dtype that this pass does not take, or a weight with an infinity or NaN.
    """
    linears = linear_nodes(model)
    recipe.check([node.name or "" for node in model.graph], [linear.name for linear in linears])
    report = QdqReport()
    chosen: list[tuple[Linear, Quantized]] = []
    for linear in linears:
        numerics = recipe.resolve(linear.name)
        if not isinstance(numerics, Quantized):
            report.kept_high.append(linear.name)
            _count(report, linear, "kept_high")
        elif min(linear.shape) < _SMALLEST_SIDE:
            report.skipped[linear.name] = f"{linear.shape[0]}×{linear.shape[1]} has a side under {_SMALLEST_SIDE}"
            _count(report, linear, "skipped")
        else:
            chosen.append((linear, numerics))
    _check(model, [linear for linear, _ in chosen], ranges)

    inserter = _Inserter(model.graph, ranges)
    for linear, numerics in chosen:
        inserter.quantize(linear, numerics)
        report.quantized.append(linear.name)
        _count(report, linear, "quantized")
    report.activations = len(inserter.activations)
    inserter.remove_unused_weights()
    return report


def _count(report: QdqReport, linear: Linear, fate: str) -> None:
    report.families.setdefault(linear.family, Counter())[fate] += 1


def _check(model: ir.Model, linears: list[Linear], ranges: Ranges) -> None:
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
    missing = sorted({linear.activation for linear in linears} - ranges.low.keys())
    if missing:
        raise BadInput(
            f"the ranges miss {len(missing)} activations of this graph, such as {missing[0]!r}; "
            "calibrate again, from the bundle that is quantized"
        )


class _Inserter:
    """Makes each scale, zero point, weight and activation pair once, however many linears read it."""

    def __init__(self, graph: ir.Graph, ranges: Ranges) -> None:
        self.graph = graph
        self.ranges = ranges
        self.activations: dict[tuple[str, Format], ir.Value] = {}
        self.weights: dict[tuple[str, Format, Granularity], ir.Value] = {}

    def quantize(self, linear: Linear, numerics: Quantized) -> None:
        node, format = linear.node, numerics.format
        granularity = numerics.weights
        if linear.transposed and isinstance(granularity, PerChannel):
            granularity = PerChannel(1 - granularity.axis)
        activation, weight = (linear.activation, format), (linear.weight, format, granularity)
        if activation not in self.activations:
            self.activations[activation] = self._activation(linear, format)
        if weight not in self.weights:
            self.weights[weight] = self._weight(linear, format, granularity)
        node.replace_input_with(0, self.activations[activation])
        node.replace_input_with(1, self.weights[weight])

    def remove_unused_weights(self) -> None:
        for name in {name for name, _, _ in self.weights}:
            if not self.graph.initializers[name].uses():
                del self.graph.initializers[name]

    def _activation(self, linear: Linear, format: Format) -> ir.Value:
        """x → Q → DQ, placed before ``linear``, the first of its readers."""
        value = linear.node.inputs[0]
        assert value is not None
        name = f"{linear.activation}_{format.name}"
        scale = self._store(f"{name}_scale", scale_from_absmax(self.ranges.absmax(linear.activation), format))
        zero_point = self._zero_point(format, ())
        stored = ir.val(name, _dtype(format), value.shape)
        again = ir.val(f"{name}_dequantized", ir.DataType.FLOAT, value.shape)
        quantizer = ir.node("QuantizeLinear", [value, scale, zero_point], outputs=[stored], name=name)
        dequantizer = ir.node("DequantizeLinear", [stored, scale, zero_point], outputs=[again], name=again.name)
        self.graph.insert_before(linear.node, [quantizer, dequantizer])
        return again

    def _weight(self, linear: Linear, format: Format, granularity: Granularity) -> ir.Value:
        """8-bit weight → DQ, placed before ``linear``, the first of its readers."""
        source = self.graph.initializers[linear.weight].const_value
        if source is None:
            raise BundleError(f"{linear.weight} has no values; give the traced graph its weights before quantizing it")
        matrix = source.numpy()
        try:
            scales = weight_scales(matrix, format, granularity)
        except ValueError as error:
            raise BundleError(f"cannot quantize {linear.weight}: {error}; check the checkpoint it came from") from error
        axis = granularity.axis if isinstance(granularity, PerChannel) else 0
        name, shape, dtype = f"{linear.weight}_{format.name}", ir.Shape(matrix.shape), _dtype(format)

        def values() -> ir.TensorProtocol:
            return ir.tensor(quantize(source.numpy(), scales, format, axis), name=name)

        stored = ir.val(name, const_value=ir.LazyTensor(values, dtype, shape, name=name))
        self.graph.register_initializer(stored)
        scale = self._store(f"{name}_scale", scales)
        again = ir.val(f"{name}_dequantized", ir.DataType.FLOAT, shape)
        attributes = {} if isinstance(granularity, PerTensor) else {"axis": axis}
        inputs = [stored, scale, self._zero_point(format, scales.shape)]
        self.graph.insert_before(
            linear.node, ir.node("DequantizeLinear", inputs, attributes, outputs=[again], name=again.name)
        )
        return again

    def _zero_point(self, format: Format, shape: tuple[int, ...]) -> ir.Value:
        # reelquant.runtime.engines.onnxruntime finds FP8 graphs by this name.
        name = "_".join([format.name, "zero_point", *map(str, shape)])
        return self.graph.initializers.get(name) or self._store(name, np.zeros(shape, format.dtype))

    def _store(self, name: str, array: Floats | NDArray[np.generic]) -> ir.Value:
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        self.graph.register_initializer(value)
        return value


def _dtype(format: Format) -> ir.DataType:
    return ir.DataType.from_numpy(format.dtype)
