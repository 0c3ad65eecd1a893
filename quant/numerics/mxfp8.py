"""MXFP8: E4M3 weights and activations in blocks of 32, each with a scale that is a power of two (E8M0; OCP MX 1.0, §5).

In 16 bit a graph has TensorRT's own operators, which find the scales of an activation while they run:

    x → TRT_MXFP8DynamicQuantize → E4M3 x, E8M0 scales → TRT_MXFP8DequantizeLinear → MatMul ← … ← weight

In float32 it has the same arithmetic in operators that every engine has, to judge the quality on a CPU:

    x → blocks of 32 → divided by their scales → QuantizeLinear → DequantizeLinear → times their scales → MatMul ← …

A scale is the least power of two that lets no value of its block saturate (arXiv:2506.08027, §3), as NVIDIA's ModelOpt has it;
OCP's own formula rounds it down, and then cuts off the largest values of some blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from reelquant.quant.calibration.ranges import Ranges
from reelquant.quant.evaluation.limits import FP8, Limits
from reelquant.quant.formats import FP8_E4M3, Blocked, Format
from reelquant.quant.graph.linears import Linear
from reelquant.quant.methods.primitives import Floats, quantize
from reelquant.quant.numerics.numerics import Group, Numerics
from reelquant.quant.passes.qdq import QdqInserter
from reelquant.runtime.bundle.support import Support
from reelquant.runtime.errors import BundleError

_QUANTIZE, _DEQUANTIZE = "TRT_MXFP8DynamicQuantize", "TRT_MXFP8DequantizeLinear"
_FLOAT, _FP8 = ir.DataType.FLOAT, ir.DataType.FLOAT8E4M3FN
_BIAS = 127  # of E8M0's exponent
_SMALLEST = (
    2.0**-100
)  # block maxima below it count as this: scales stay normal numbers, which no engine flushes to zero
# A block whose largest value is 448 times a power of two has that power, however a logarithm is rounded.
_SLACK = 1e-6


@dataclass(frozen=True)
class MxFp8(Numerics):
    """8 bit on both sides, in blocks along the summed axis; nothing of it is calibrated."""

    format: Format = FP8_E4M3

    blocks = Blocked(32)
    operators = frozenset({_QUANTIZE, _DEQUANTIZE})
    reads_range = False
    rounds = False

    @property
    def limits(self) -> Limits:
        return FP8

    def support(self, base: str) -> Support:
        """In 16 bit TensorRT has to see the blocks while it parses, and can only at one size."""
        return Support(gpu=89) if base == "fp32" else Support(gpu=100, cpu=False, dynamic=False)

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        """As it is stored beside float32; in 16 bit a scale takes one byte instead of four."""
        return math.prod(shape) + 4 * math.prod(shape) // self.blocks.size

    def refuses(self, linear: Linear) -> str | None:
        if linear.transposed or linear.shape[0] % self.blocks.size:
            return f"MXFP8 takes a MatMul whose inner side is a multiple of {self.blocks.size}"
        return None

    def insert(self, inserter: QdqInserter, group: Group, ranges: Ranges) -> None:
        for linear in group.linears:
            key = f"{group.activation}_mxfp8"
            if key not in inserter.blocked:
                read = linear.node.inputs[0]
                assert read is not None
                made = _emulated if inserter.base == "fp32" else _dynamic
                inserter.blocked[key] = made(inserter, read, key, linear, self.blocks.size)
            linear.node.replace_input_with(0, inserter.blocked[key])
            linear.node.replace_input_with(1, self._weight(inserter, linear))
            inserter.replaced.add(linear.weight)

    def _weight(self, inserter: QdqInserter, linear: Linear) -> ir.Value:
        source = inserter.graph.initializers[linear.weight].const_value
        assert source is not None
        try:
            exponents = block_exponents(source.numpy(), self.blocks.size)
        except ValueError as error:
            raise BundleError(f"cannot quantize {linear.weight}: {error}; check the checkpoint it came from") from error
        scales, name = np.exp2(exponents).astype(np.float32), f"{linear.weight}_mxfp8"

        def values() -> ir.TensorProtocol:
            return ir.tensor(quantize(source.numpy(), scales, FP8_E4M3), name=name)

        stored = ir.val(name, const_value=ir.LazyTensor(values, _FP8, ir.Shape(source.shape.numpy()), name=name))
        inserter.graph.register_initializer(stored)
        again = ir.val(f"{name}_dequantized", _FLOAT, stored.shape)
        blocks = {"axis": 0, "block_size": self.blocks.size}
        if inserter.base == "fp32":
            scale = inserter.store(f"{name}_scale", scales)
            node = ir.node("DequantizeLinear", [stored, scale], blocks, outputs=[again], name=again.name)
        else:
            scale = inserter.store(f"{name}_scale", (exponents + _BIAS).astype(np.uint8))
            node = _dequantize(stored, scale, again, blocks)
        inserter.graph.insert_before(linear.node, node)
        return again


def block_exponents(weight: Floats, size: int) -> NDArray[np.int32]:
    """Exponents [K / size, N] of the scales of a weight [K, N]: the least e with ``|w| <= 448 · 2ᵉ`` throughout a block.

    Raises:
        ValueError: the weight has an infinity or a NaN.
    """
    largest = np.abs(weight.reshape(-1, size, weight.shape[1])).max(axis=1)
    if not np.isfinite(largest).all():
        raise ValueError("it has a value that is infinite or not a number, so it has no scale")
    exponents = np.ceil(np.log2(np.maximum(largest.astype(np.float64) / FP8_E4M3.largest, _SMALLEST)))
    return np.where(largest > 0, exponents, 0).astype(np.int32)


def _dynamic(inserter: QdqInserter, read: ir.Value, name: str, linear: Linear, size: int) -> ir.Value:
    """In TensorRT's operators, before ``linear``."""
    outputs = [ir.val(name, _FP8, read.shape), ir.val(f"{name}_scale", ir.DataType.UINT8)]
    again = ir.val(f"{name}_dequantized", _FLOAT, read.shape)
    blocks = {"axis": -1, "block_size": size}
    attributes = {**blocks, "output_dtype": _FP8.value}
    quantizer = ir.node(_QUANTIZE, [read], attributes, domain="trt", outputs=outputs, name=name)
    inserter.graph.insert_before(linear.node, [quantizer, _dequantize(outputs[0], outputs[1], again, blocks)])
    return again


def _dequantize(stored: ir.Value, scale: ir.Value, result: ir.Value, blocks: dict[str, int]) -> ir.Node:
    attributes = {**blocks, "output_dtype": _FLOAT.value}
    return ir.node(_DEQUANTIZE, [stored, scale], attributes, domain="trt", outputs=[result], name=result.name)


def _emulated(inserter: QdqInserter, read: ir.Value, name: str, linear: Linear, size: int) -> ir.Value:
    """In operators that every engine has, before ``linear``."""
    rank = read.shape.rank() if read.shape is not None else 3
    in_blocks = inserter.constant(f"mxfp8_blocks_{rank}", np.array([0] * (rank - 1) + [-1, size]))
    flat = inserter.constant(f"mxfp8_flat_{rank}_{linear.shape[0]}", np.array([0] * (rank - 1) + [linear.shape[0]]))

    def made(operator: str, what: str, *inputs: ir.Value, dtype: ir.DataType = _FLOAT, **attributes: int) -> ir.Value:
        result = ir.val(f"{name}_{what}", dtype)
        node = ir.node(operator, list(inputs), attributes, outputs=[result], name=result.name)
        inserter.graph.insert_before(linear.node, node)
        return result

    def number(what: str, value: float) -> ir.Value:
        return inserter.constant(f"mxfp8_{what}", np.asarray(value, np.float32))

    blocked = made("Reshape", "blocks", read, in_blocks)
    last = inserter.constant("mxfp8_axis", np.array([-1]))
    largest = made("ReduceMax", "largest", made("Abs", "magnitude", blocked), last, keepdims=1)
    needed = made("Mul", "needed", largest, number("least_step", 1 / FP8_E4M3.largest))
    logarithm = made("Log", "log", made("Max", "floored", needed, number("smallest", _SMALLEST)))
    doublings = made("Mul", "log2", logarithm, number("per_doubling", 1 / math.log(2)))
    exponent = made("Ceil", "exponent", made("Sub", "below", doublings, number("slack", _SLACK)))
    scale = made("Pow", "scale", number("two", 2.0), exponent)
    steps = made("Div", "steps", blocked, scale)
    one, zero_point = number("one", 1.0), inserter.zero_point(FP8_E4M3, ())
    stored = made("QuantizeLinear", "stored", steps, one, zero_point, dtype=_FP8)
    again = made("DequantizeLinear", "restored", stored, one, zero_point)
    result = made("Reshape", "dequantized", made("Mul", "scaled", again, scale), flat)
    result.shape = read.shape
    return result
