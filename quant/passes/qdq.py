"""Q/DQ pairs and 8-bit weights in a graph: each scale, zero point, weight and pair is made once.

    x → QuantizeLinear → DequantizeLinear → MatMul ← DequantizeLinear ← 8-bit weight

Nothing stands between DequantizeLinear and MatMul, or engines would not fuse the two into an 8-bit product.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from reelquant.quant.linears import Linear
from reelquant.quant.numerics import Format, Granularity, PerChannel, PerTensor
from reelquant.quant.primitives import Floats, quantize, representable, weight_scales
from reelquant.runtime.errors import BundleError


class QdqInserter:
    """Puts Q/DQ into ``graph``, whose scales will be computed with in ``base`` ("fp32", "fp16" or "bf16").

    Scales are rounded to what ``base`` can hold before anything is quantized with them, so that a later cast of the
    graph changes no 8-bit value.
    """

    def __init__(self, graph: ir.Graph, base: str) -> None:
        self.graph, self._base = graph, base
        self._pairs: dict[tuple[str, Format], ir.Value] = {}
        self._weights: dict[tuple[str, Format, Granularity], ir.Value] = {}
        self.blocked: dict[str, ir.Value] = {}
        self.replaced: set[str] = set()

    @property
    def activations(self) -> int:
        """How many activations have Q/DQ."""
        return len(self._pairs) + len(self.blocked)

    def rounded(self, scales: Floats) -> Floats:
        """``scales`` as the base can hold them."""
        return representable(scales, self._base)

    def activation(self, node: ir.Node, index: int, name: str, scale: Floats, format: Format) -> None:
        """Let input ``index`` of ``node`` be read through Q/DQ; its value is called ``name``."""
        key = (name, format)
        if key not in self._pairs:
            value = node.inputs[index]
            assert value is not None
            self._pairs[key] = self._pair(value, f"{name}_{format.name}", scale, format, node)
        node.replace_input_with(index, self._pairs[key])

    def weight(self, linear: Linear, format: Format, granularity: Granularity) -> None:
        """Let ``linear`` read its weight in 8 bit; ``granularity`` speaks of a weight [K, N]."""
        if linear.transposed and isinstance(granularity, PerChannel):
            granularity = PerChannel(1 - granularity.axis)
        key = (linear.weight, format, granularity)
        if key not in self._weights:
            self._weights[key] = self._weight(linear, format, granularity)
        linear.node.replace_input_with(1, self._weights[key])

    def remove_unused_weights(self) -> None:
        for name in {name for name, _, _ in self._weights} | self.replaced:
            if not self.graph.initializers[name].uses():
                del self.graph.initializers[name]

    def _pair(self, value: ir.Value, name: str, scale: Floats, format: Format, reader: ir.Node) -> ir.Value:
        """x → Q → DQ, placed before ``reader``, the first that asks for it."""
        stored_scale = self.store(f"{name}_scale", representable(scale, self._base))
        zero_point = self._zero_point(format, ())
        stored = ir.val(name, _dtype(format), value.shape)
        again = ir.val(f"{name}_dequantized", ir.DataType.FLOAT, value.shape)
        quantizer = ir.node("QuantizeLinear", [value, stored_scale, zero_point], outputs=[stored], name=name)
        dequantizer = ir.node("DequantizeLinear", [stored, stored_scale, zero_point], outputs=[again], name=again.name)
        self.graph.insert_before(reader, [quantizer, dequantizer])
        return again

    def _weight(self, linear: Linear, format: Format, granularity: Granularity) -> ir.Value:
        """8-bit weight → DQ, placed before ``linear``, the first of its readers."""
        source = self.graph.initializers[linear.weight].const_value
        if source is None:
            raise BundleError(f"{linear.weight} has no values; give the traced graph its weights before quantizing it")
        matrix = source.numpy()
        try:
            scales = representable(weight_scales(matrix, format, granularity), self._base)
        except ValueError as error:
            raise BundleError(f"cannot quantize {linear.weight}: {error}; check the checkpoint it came from") from error
        axis = granularity.axis if isinstance(granularity, PerChannel) else 0
        name, shape, dtype = f"{linear.weight}_{format.name}", ir.Shape(matrix.shape), _dtype(format)

        def values() -> ir.TensorProtocol:
            return ir.tensor(quantize(source.numpy(), scales, format, axis), name=name)

        # Computed when the model is saved, one at a time, so a model larger than memory passes.
        stored = ir.val(name, const_value=ir.LazyTensor(values, dtype, shape, name=name))
        self.graph.register_initializer(stored)
        scale = self.store(f"{name}_scale", scales)
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
        return self.graph.initializers.get(name) or self.store(name, np.zeros(shape, format.dtype))

    def store(self, name: str, array: Floats | NDArray[np.generic]) -> ir.Value:
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        self.graph.register_initializer(value)
        return value


def _dtype(format: Format) -> ir.DataType:
    return ir.DataType.from_numpy(format.dtype)
