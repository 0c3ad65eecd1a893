"""8 bit on both sides of a product, with scales that calibration found."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from reelquant.quant.calibration.channels import BINS
from reelquant.quant.calibration.ranges import Ranges
from reelquant.quant.evaluation.limits import FP8, INT8, Limits
from reelquant.quant.formats import INT8 as INT8_FORMAT
from reelquant.quant.formats import Format, Granularity, PerChannel
from reelquant.quant.methods.balance import balance, identity
from reelquant.quant.methods.method import Method
from reelquant.quant.methods.observers import threshold
from reelquant.quant.methods.primitives import scale_from_absmax
from reelquant.quant.methods.treatment import Treatment
from reelquant.quant.numerics.numerics import Group, Numerics
from reelquant.quant.passes.qdq import QdqInserter
from reelquant.runtime.bundle.support import Support

_NO_HISTOGRAM = np.zeros(BINS, np.int64)


@dataclass(frozen=True)
class Quantized(Numerics):
    """8 bit on both sides of the product, in one format: no engine multiplies INT8 by FP8.

    ``weights`` speaks of a weight [K, N], so output channels are axis 1. Activations are always static and per tensor,
    the only kind TensorRT takes. An attention so quantized has no weights: Q, K, V and the softmax's output are
    quantized per tensor. ``weight_format`` is that of the weights where it is another than the activations'.
    """

    format: Format
    weights: Granularity
    weight_format: Format | None = None

    balances = True

    @property
    def limits(self) -> Limits:
        return INT8 if self.format == INT8_FORMAT else FP8

    @property
    def attends(self) -> bool:
        """Whether a whole attention can be so computed: no engine fuses an INT8 attention at video lengths."""
        return self.format != INT8_FORMAT

    def support(self, base: str) -> Support:
        return Support() if self.format == INT8_FORMAT else Support(gpu=89)

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        return math.prod(shape) + 4 * scales_of(self.weights, shape)

    def needs_channels(self, method: Method) -> bool:
        return method.needs_channels(weight_only=False)

    def insert(self, inserter: QdqInserter, group: Group, ranges: Ranges) -> None:
        name, method = group.activation, group.method
        channels = ranges.channels.get(name)
        balanced, treatment = None, None
        if method.balances and channels is not None:
            weights = [inserter.matrix(linear) for linear in group.linears]
            balanced = balance(channels, weights, method.strength or 0.0, method.shift, inserter.base)
            absmax = balanced.absmax
        else:
            absmax = clipped(ranges, name, method.observer, self.format)
        scale = inserter.rounded(scale_from_absmax(absmax, self.format))
        if channels is not None and (method.balances or method.rounding == "gptq"):
            noise = float(scale) ** 2 / 12 if self.format == INT8_FORMAT else 0.0
            treatment = Treatment(channels, balanced or identity(channels), noise, method.rounding == "gptq")
        for linear in group.linears:
            inserter.activation(linear.node, 0, name, scale, self.format, balanced)
            inserter.weight(linear, self.weight_format or self.format, self.weights, treatment)


def clipped(ranges: Ranges, name: str, observer: str, format: Format) -> float:
    """The magnitude of the activation ``name`` that becomes the format's largest, as the method's observer says."""
    return threshold(observer, ranges.absmax(name), ranges.histograms.get(name, _NO_HISTOGRAM), format)


def scales_of(granularity: Granularity, shape: tuple[int, int]) -> int:
    """How many scales a weight [K, N] has."""
    return shape[1] if isinstance(granularity, PerChannel) else 1
