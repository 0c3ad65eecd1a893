"""Weights in 8 or 4 bit, multiplied in the graph's own precision."""

from __future__ import annotations

import math
from dataclasses import dataclass

from reelquant.quant.calibration.ranges import Ranges
from reelquant.quant.evaluation.limits import FP8, INT4, INT8, Limits
from reelquant.quant.formats import Blocked, Format, Granularity
from reelquant.quant.graph.linears import Linear
from reelquant.quant.methods.balance import identity
from reelquant.quant.methods.method import Method
from reelquant.quant.methods.treatment import Treatment
from reelquant.quant.numerics.numerics import Group, Numerics
from reelquant.quant.numerics.static import scales_of
from reelquant.quant.passes.qdq import QdqInserter
from reelquant.runtime.bundle.support import Support

_LIMITS = {"int8": INT8, "fp8": FP8, "int4": INT4}


@dataclass(frozen=True)
class WeightOnly(Numerics):
    """The weight is stored in 8 or 4 bit and multiplied in the graph's own precision: fewer bytes, exact activations.

    For who is bound by memory: the work stays what it was. Engines that have a product for it (ONNX Runtime's MatMulNBits,
    OpenVINO's compressed weights) find it in DequantizeLinear before MatMul.
    """

    format: Format
    weights: Granularity | Blocked

    weight_only = True
    reads_range = False

    @property
    def limits(self) -> Limits:
        return _LIMITS[self.format.name]

    def support(self, base: str) -> Support:
        return Support(gpu=89) if self.format.name == "fp8" else Support()

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        count = math.prod(shape)
        if isinstance(self.weights, Blocked):
            return count // 2 + 4 * count // self.weights.size
        return count + 4 * scales_of(self.weights, shape)

    def refuses(self, linear: Linear) -> str | None:
        if isinstance(self.weights, Blocked) and linear.shape[0] % self.weights.size:
            return f"its inner side, {linear.shape[0]}, is not a multiple of the block's"
        return None

    def needs_channels(self, method: Method) -> bool:
        return method.needs_channels(weight_only=True)

    def insert(self, inserter: QdqInserter, group: Group, ranges: Ranges) -> None:
        channels, treatment = ranges.channels.get(group.activation), None
        if channels is not None and (group.method.balances or group.method.rounding == "gptq"):
            treatment = Treatment(channels, identity(channels), 0.0, group.method.rounding == "gptq")
        for linear in group.linears:
            inserter.weight(linear, self.format, self.weights, treatment)
