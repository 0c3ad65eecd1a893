"""NVFP4: 4-bit weights and activations in blocks of 16, each with an E4M3 scale under one scale of the whole tensor.

    x → TRT_FP4DynamicQuantize → 4-bit x, block scales → DequantizeLinear twice → MatMul ← DequantizeLinear twice ← weight

TRT_FP4DynamicQuantize is TensorRT's own operator: it finds the block scales of an activation while it runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from reelquant.quant.calibration.ranges import Ranges
from reelquant.quant.formats import FP4_E2M1, FP8_E4M3, Blocked, Format
from reelquant.quant.graph.linears import Linear
from reelquant.quant.methods.primitives import Floats, scale_from_absmax
from reelquant.quant.numerics.numerics import Group, Numerics
from reelquant.quant.passes.qdq import QdqInserter
from reelquant.runtime.bundle.support import Support
from reelquant.runtime.errors import BundleError

_DYNAMIC = "TRT_FP4DynamicQuantize"
_FP4, _FP8 = ir.DataType.FLOAT4E2M1, ir.DataType.FLOAT8E4M3FN
_FP4_NUMPY = np.dtype(ml_dtypes.float4_e2m1fn)


@dataclass(frozen=True)
class NvFp4(Numerics):
    """4 bit on both sides, in blocks along the summed axis. Activations' block scales are found while running, under a
    calibrated scale of the whole tensor. Blackwell's tensor cores alone have it, and TensorRT alone runs it.

    Block scales are themselves E4M3, under one scale for the whole tensor (NVIDIA's PTX ISA, mxf4nvf4).
    """

    format: Format = FP4_E2M1

    blocks = Blocked(16)
    bases = ("fp16", "bf16")
    operators = frozenset({_DYNAMIC})
    opset = 23  # the first whose DequantizeLinear takes FP4; to the other operators of our graphs it only adds types
    rounds = False

    @property
    def limits(self) -> None:
        return None

    def support(self, base: str) -> Support:
        """TensorRT decides while it parses whether a DequantizeLinear is blocked, and can tell only at one size."""
        return Support(gpu=100, cpu=False, dynamic=False)

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        count = math.prod(shape)
        return count // 2 + count // self.blocks.size

    def refuses(self, linear: Linear) -> str | None:
        if linear.transposed or linear.shape[0] % self.blocks.size:
            return f"NVFP4 takes a MatMul whose inner side is a multiple of {self.blocks.size}"
        return None

    def insert(self, inserter: QdqInserter, group: Group, ranges: Ranges) -> None:
        for linear in group.linears:
            _quantize(inserter, linear, self, ranges.absmax(group.activation))


def tensor_scale(absmax: float, numerics: NvFp4) -> Floats:
    """The scale of a whole tensor: with it, the largest block's scale is E4M3's largest, 448."""
    return np.asarray(scale_from_absmax(absmax / numerics.format.largest, FP8_E4M3), np.float32)


def block_scales(weight: Floats, whole: Floats, numerics: NvFp4) -> Floats:
    """E4M3 scales [K / size, N] of a weight [K, N], as float32, in units of ``whole``."""
    size = numerics.blocks.size
    largest = np.abs(weight.reshape(weight.shape[0] // size, size, weight.shape[1])).max(1)
    scales = np.clip(largest / numerics.format.largest / whole, 2.0**-9, FP8_E4M3.largest)
    return np.asarray(scales.astype(FP8_E4M3.dtype).astype(np.float32))


def _quantize(inserter: QdqInserter, linear: Linear, numerics: NvFp4, absmax: float) -> None:
    """Let ``linear`` (a MatMul with a stored weight [K, N]) multiply in NVFP4; ``absmax`` is its activation's.

    Raises:
        BundleError: the weight has an infinity or NaN.
    """
    graph, size = inserter.graph, numerics.blocks.size
    source = graph.initializers[linear.weight].const_value
    assert source is not None and not linear.transposed
    matrix = source.numpy()
    try:
        whole = inserter.rounded(tensor_scale(float(max(matrix.max(), -matrix.min())), numerics))
    except ValueError as error:
        raise BundleError(f"cannot quantize {linear.weight}: {error}; check the checkpoint it came from") from error
    scales = block_scales(matrix, whole, numerics)
    name = f"{linear.weight}_fp4"

    def values() -> ir.TensorProtocol:
        steps = source.numpy() / np.repeat(scales * whole, size, axis=0)
        return ir.tensor(np.clip(steps, -6, 6).astype(_FP4_NUMPY), name=name)

    stored = ir.val(name, const_value=ir.LazyTensor(values, _FP4, ir.Shape(matrix.shape), name=name))
    graph.register_initializer(stored)
    block = inserter.store(f"{name}_block_scale", scales.astype(FP8_E4M3.dtype))
    again = _dequantized(graph, linear.node, stored, block, inserter.store(f"{name}_scale", whole), 0, size)
    linear.node.replace_input_with(1, again)
    inserter.replaced.add(linear.weight)
    linear.node.replace_input_with(0, _activation(inserter, linear, numerics, absmax))


def _activation(inserter: QdqInserter, linear: Linear, numerics: NvFp4, absmax: float) -> ir.Value:
    name = f"{linear.activation}_fp4"
    made = inserter.blocked.get(name)
    if made is None:
        read = linear.node.inputs[0]
        assert read is not None
        whole = inserter.store(f"{name}_scale", inserter.rounded(tensor_scale(absmax, numerics)))
        outputs = [ir.val(name, _FP4, read.shape), ir.val(f"{name}_block_scale", _FP8)]
        attributes = {"axis": -1, "block_size": numerics.blocks.size, "scale_type": _FP8.value}
        node = ir.node(_DYNAMIC, [read, whole], attributes, domain="trt", outputs=outputs, name=name)
        inserter.graph.insert_before(linear.node, node)
        made = _dequantized(inserter.graph, linear.node, outputs[0], outputs[1], whole, -1, numerics.blocks.size)
        inserter.blocked[name] = made
    return made


def _dequantized(
    graph: ir.Graph, reader: ir.Node, stored: ir.Value, block: ir.Value, whole: ir.Value, axis: int, size: int
) -> ir.Value:
    """The block scales times the tensor's, then the values times those, both before ``reader``."""
    scale = ir.val(f"{block.name}_dequantized", ir.DataType.FLOAT, block.shape)
    value = ir.val(f"{stored.name}_dequantized", ir.DataType.FLOAT, stored.shape)
    first = ir.node("DequantizeLinear", [block, whole], outputs=[scale], name=scale.name)
    blocks = {"axis": axis, "block_size": size}
    second = ir.node("DequantizeLinear", [stored, scale], blocks, outputs=[value], name=value.name)
    graph.insert_before(reader, [first, second])
    return value
