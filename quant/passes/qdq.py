"""Q/DQ pairs and 8-bit weights in a graph: each scale, zero point, weight and pair is made once.

    x (→ Mul → Add, where it is balanced) → QuantizeLinear → DequantizeLinear → MatMul ← DequantizeLinear ← 8-bit weight

Nothing stands between DequantizeLinear and MatMul, or engines would not fuse the two into an 8-bit product.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from reelquant.quant.formats import Blocked, Format, Granularity, PerChannel, PerTensor
from reelquant.quant.graph.linears import Linear, bias_of
from reelquant.quant.methods.balance import Balance
from reelquant.quant.methods.primitives import Floats, dequantize, quantize, representable, weight_scales
from reelquant.quant.methods.treatment import Treatment
from reelquant.runtime.errors import BundleError


class QdqInserter:
    """Puts Q/DQ into ``graph``, whose scales will be computed with in ``base`` ("fp32", "fp16" or "bf16").

    Scales are rounded to what ``base`` can hold before anything is quantized with them, so that a later cast of the
    graph changes no 8-bit value.
    """

    def __init__(self, graph: ir.Graph, base: str) -> None:
        self.graph, self.base = graph, base
        self._pairs: dict[tuple[str, Format, Balance | None], ir.Value] = {}
        self._weights: dict[
            tuple[str, Format, Granularity | Blocked, Treatment | None], tuple[ir.Value, Floats | None]
        ] = {}
        self.blocked: dict[str, ir.Value] = {}
        self.replaced: set[str] = set()

    @property
    def activations(self) -> int:
        """How many activations have Q/DQ."""
        return len(self._pairs) + len(self.blocked)

    def rounded(self, scales: Floats) -> Floats:
        """``scales`` as the base can hold them."""
        return representable(scales, self.base)

    def matrix(self, linear: Linear) -> Floats:
        """The weight of ``linear`` as [K, N].

        Raises:
            BundleError: it has no values.
        """
        source = self.graph.initializers[linear.weight].const_value
        if source is None:
            raise BundleError(f"{linear.weight} has no values; give the traced graph its weights before quantizing it")
        return _oriented(source.numpy(), linear)

    def activation(
        self, node: ir.Node, index: int, name: str, scale: Floats, format: Format, balance: Balance | None = None
    ) -> None:
        """Let input ``index`` of ``node`` be read through Q/DQ, balanced first if need be; its value is called ``name``."""
        key = (name, format, balance)
        if key not in self._pairs:
            value = node.inputs[index]
            assert value is not None
            same = sum(other[:2] == key[:2] for other in self._pairs)
            stored = f"{name}_{format.name}" + (f"_{same}" if same else "")
            if balance is not None:
                value = self._balanced(value, stored, balance, node)
            self._pairs[key] = self._pair(value, stored, scale, format, node)
        node.replace_input_with(index, self._pairs[key])

    def weight(
        self, linear: Linear, format: Format, granularity: Granularity | Blocked, treatment: Treatment | None = None
    ) -> None:
        """Let ``linear`` read its weight in 8 bit; ``granularity`` speaks of a weight [K, N].

        With a ``treatment`` the weight is balanced and rounded as that says, and the bias takes what the shift and the
        mean of the rounding's errors come to.
        """
        key = (linear.weight, format, granularity, treatment)
        if key not in self._weights:
            self._weights[key] = self._weight(linear, format, granularity, treatment)
        weight, correction = self._weights[key]
        linear.node.replace_input_with(1, weight)
        if correction is not None:
            self._add_to_bias(linear, correction, format)

    def filters(self, node: ir.Node, name: str, format: Format) -> None:
        """Let the convolution ``node`` read its filters ``name`` [out, in, …] in 8 bit, with a scale for each output channel.

        Raises:
            BundleError: they have an infinity or a NaN.
        """
        source = self.graph.initializers[name].const_value
        assert source is not None
        filters = source.numpy()
        try:
            scales = self.rounded(weight_scales(filters, format, PerChannel(0)))
        except ValueError as error:
            raise BundleError(f"cannot quantize {name}: {error}; check the checkpoint it came from") from error
        stored = self.store(f"{name}_{format.name}", quantize(filters, scales, format))
        inputs = [stored, self.store(f"{stored.name}_scale", scales), self.zero_point(format, scales.shape)]
        node.replace_input_with(1, self._dequantized(inputs, {"axis": 0}, ir.Shape(filters.shape), node))
        self.replaced.add(name)

    def remove_unused_weights(self) -> None:
        for name in {name for name, *_ in self._weights} | self.replaced:
            if not self.graph.initializers[name].uses():
                del self.graph.initializers[name]

    def _pair(self, value: ir.Value, name: str, scale: Floats, format: Format, reader: ir.Node) -> ir.Value:
        """x → Q → DQ, placed before ``reader``, the first that asks for it."""
        stored_scale = self.store(f"{name}_scale", representable(scale, self.base))
        zero_point = self.zero_point(format, ())
        stored = ir.val(name, _dtype(format), value.shape)
        again = ir.val(f"{name}_dequantized", ir.DataType.FLOAT, value.shape)
        quantizer = ir.node("QuantizeLinear", [value, stored_scale, zero_point], outputs=[stored], name=name)
        dequantizer = ir.node("DequantizeLinear", [stored, stored_scale, zero_point], outputs=[again], name=again.name)
        self.graph.insert_before(reader, [quantizer, dequantizer])
        return again

    def _balanced(self, value: ir.Value, name: str, balance: Balance, reader: ir.Node) -> ir.Value:
        """x · factor + summand, before ``reader``: one pass over the tensor, which engines join with Q."""
        for operator, what, result_name, numbers in (
            ("Mul", "balance", f"{name}_balanced", balance.factor),
            ("Add", "shift", f"{name}_shifted", balance.summand),
        ):
            result = ir.val(result_name, ir.DataType.FLOAT, value.shape)
            factor = self.store(f"{name}_{what}", numbers)
            self.graph.insert_before(reader, ir.node(operator, [value, factor], outputs=[result], name=result.name))
            value = result
        return value

    def _weight(
        self, linear: Linear, format: Format, granularity: Granularity | Blocked, treatment: Treatment | None
    ) -> tuple[ir.Value, Floats | None]:
        """8-bit weight → DQ, placed before ``linear``, the first of its readers; and what its bias has to take."""
        original = self.matrix(linear)
        matrix = original
        try:
            if treatment is not None:
                matrix = treatment.weight(matrix)
            scales = representable(weight_scales(matrix, format, granularity), self.base)
        except ValueError as error:
            raise BundleError(f"cannot quantize {linear.weight}: {error}; check the checkpoint it came from") from error
        axis = granularity.axis if isinstance(granularity, PerChannel) else 0
        correction, rounded = None, None
        if treatment is not None:
            rounded = treatment.rounded(matrix, scales, format, axis)
            correction = treatment.correction(original, matrix - dequantize(rounded, scales, axis))
        source = self.graph.initializers[linear.weight].const_value
        assert source is not None
        shape, dtype = ir.Shape(source.shape.numpy()), _dtype(format)
        name = self._unused(f"{linear.weight}_{format.name}")

        def values() -> ir.TensorProtocol:
            found = quantize(_oriented(source.numpy(), linear), scales, format, axis) if rounded is None else rounded
            return ir.tensor(np.ascontiguousarray(_oriented(found, linear)), name=name)

        # Without treatment computed when the model is saved, one at a time, so a model larger than memory passes.
        stored = ir.val(name, const_value=ir.LazyTensor(values, dtype, shape, name=name))
        self.graph.register_initializer(stored)
        turned = linear.transposed and isinstance(granularity, Blocked)
        scale = self.store(f"{name}_scale", np.ascontiguousarray(scales.T) if turned else scales)
        attributes = {} if isinstance(granularity, PerTensor) else {"axis": 1 - axis if linear.transposed else axis}
        inputs = [stored, scale]
        if isinstance(granularity, Blocked):
            attributes["block_size"] = granularity.size
        else:
            inputs.append(self.zero_point(format, scales.shape))
        return self._dequantized(inputs, attributes, shape, linear.node), correction

    def _dequantized(
        self, inputs: list[ir.Value], attributes: dict[str, int], shape: ir.Shape, reader: ir.Node
    ) -> ir.Value:
        """A stored weight → DQ, placed before ``reader``; ``inputs`` are DQ's."""
        again = ir.val(f"{inputs[0].name}_dequantized", ir.DataType.FLOAT, shape)
        made = ir.node("DequantizeLinear", inputs, attributes, outputs=[again], name=again.name)
        self.graph.insert_before(reader, made)
        return again

    def _add_to_bias(self, linear: Linear, correction: Floats, format: Format) -> None:
        node, index = bias_of(linear)
        if node is None:
            node, index = self._bias(linear, correction.shape[0]), 1
        bias = node.inputs[index]
        assert bias is not None and bias.const_value is not None
        summed = bias.const_value.numpy().astype(np.float32) + correction
        if len(bias.uses()) == 1:
            bias.const_value = ir.tensor(summed, name=bias.name)
        else:
            node.replace_input_with(index, self.store(self._unused(f"{bias.name}_{format.name}"), summed))

    def _bias(self, linear: Linear, count: int) -> ir.Node:
        """A bias of zeros, for a linear that has none; the sum takes the product's name."""
        product = linear.node.outputs[0]
        name, product.name = product.name, f"{product.name}_unbiased"
        result = ir.val(name, product.dtype, product.shape)
        zeros = self.store(f"{linear.name}.bias", np.zeros(count, np.float32))
        ir.convenience.replace_all_uses_with(product, result, replace_graph_outputs=True)
        added = ir.node("Add", [product, zeros], outputs=[result], name=f"{linear.name}/Add")
        self.graph.insert_after(linear.node, added)
        return added

    def _unused(self, name: str) -> str:
        return name if name not in self.graph.initializers else f"{name}_{len(self.graph.initializers)}"

    def zero_point(self, format: Format, shape: tuple[int, ...]) -> ir.Value:
        # reelquant.runtime.engines.onnxruntime finds FP8 graphs by this name.
        name = "_".join([format.name, "zero_point", *map(str, shape)])
        return self.constant(name, np.zeros(shape, format.dtype))

    def constant(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        """The initializer of this name, made once."""
        return self.graph.initializers.get(name) or self.store(name, array)

    def store(self, name: str, array: Floats | NDArray[np.generic]) -> ir.Value:
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        self.graph.register_initializer(value)
        return value


def _dtype(format: Format) -> ir.DataType:
    return ir.DataType.from_numpy(format.dtype)


def _oriented(matrix: NDArray[Any], linear: Linear) -> NDArray[Any]:
    """A stored weight as [K, N], or [K, N] as it is stored."""
    return matrix.T if linear.transposed else matrix
