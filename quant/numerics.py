"""What a product may be computed in: formats, granularities, and the numerics that a recipe can name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class Format:
    """A number format of 8 bit or fewer. ``largest`` is the magnitude that a tensor's absolute maximum is mapped to."""

    name: str
    dtype: np.dtype[Any]
    largest: float


# ±127, not -128: the grid is then its own mirror image, so negating a weight negates its product exactly, no zero
# point is needed, and no product exceeds 127². It is also the range TensorRT's symmetric scales (absmax/127) assume.
INT8 = Format("int8", np.dtype(np.int8), 127.0)
# Weights in 7 of the 8 bits: CPUs without VNNI add two products of an unsigned and a signed byte in 16 bits, and
# 2 · 255 · 64 is the largest such sum that fits (ONNX Runtime calls it reduce_range, NNCF its overflow fix).
INT8_REDUCED = Format("int8_reduced", np.dtype(np.int8), 64.0)
# The largest finite value of E4M3 "fn" (OCP OFP8, table 1): 1.75 · 2⁸. It has no infinity.
FP8_E4M3 = Format("fp8", np.dtype(ml_dtypes.float8_e4m3fn), 448.0)
# ±7, for the same reason as INT8's ±127.
INT4 = Format("int4", np.dtype(ml_dtypes.int4), 7.0)
# 4 bit: ±{0, ½, 1, 1½, 2, 3, 4, 6} (OCP MX, table 5).
FP4_E2M1 = Format("fp4", np.dtype(ml_dtypes.float4_e2m1fn), 6.0)


@dataclass(frozen=True)
class PerTensor:
    """One scale: values [...] → scale []."""


@dataclass(frozen=True)
class PerChannel:
    """One scale per index of ``axis``: values [K, N], axis 1 → scale [N]."""

    axis: int


@dataclass(frozen=True)
class Blocked:
    """One scale per ``size`` neighbours along the summed axis: a weight [K, N] has scales [K / size, N].

    NVFP4's are themselves E4M3, under one scale for the whole tensor (NVIDIA's PTX ISA, mxf4nvf4).
    """

    size: int


Granularity: TypeAlias = PerTensor | PerChannel


@dataclass(frozen=True)
class High:
    """Stay in the graph's own precision."""


@dataclass(frozen=True)
class Quantized:
    """8 bit on both sides of the product, in one format: no engine multiplies INT8 by FP8.

    ``weights`` speaks of a weight [K, N], so output channels are axis 1. Activations are always static and per tensor,
    the only kind TensorRT takes. An attention so quantized has no weights: Q, K, V and the softmax's output are
    quantized per tensor. ``weight_format`` is that of the weights where it is another than the activations'.
    """

    format: Format
    weights: Granularity
    activations: PerTensor = PerTensor()
    weight_format: Format | None = None


@dataclass(frozen=True)
class WeightOnly:
    """The weight is stored in 8 or 4 bit and multiplied in the graph's own precision: fewer bytes, exact activations.

    For who is bound by memory: the work stays what it was. Engines that have a product for it (ONNX Runtime's MatMulNBits,
    OpenVINO's compressed weights) find it in DequantizeLinear before MatMul.
    """

    format: Format
    weights: Granularity | Blocked


@dataclass(frozen=True)
class BlockQuantized:
    """4 bit on both sides, in blocks along the summed axis. Activations' block scales are found while running, under a
    calibrated scale of the whole tensor. Blackwell's tensor cores alone have it, and TensorRT alone runs it.
    """

    format: Format
    blocks: Blocked


Numerics: TypeAlias = Quantized | WeightOnly | BlockQuantized | High

HIGH = High()
# What a recipe can write after ``numerics =``.
NUMERICS: dict[str, Numerics] = {
    "high": HIGH,
    "int8": Quantized(INT8, weights=PerChannel(axis=1)),
    "int8_reduced": Quantized(INT8, weights=PerChannel(axis=1), weight_format=INT8_REDUCED),
    "fp8": Quantized(FP8_E4M3, weights=PerTensor()),
    "fp8_per_channel": Quantized(FP8_E4M3, weights=PerChannel(axis=1)),
    "nvfp4": BlockQuantized(FP4_E2M1, Blocked(16)),
    "int8_weight": WeightOnly(INT8, weights=PerChannel(axis=1)),
    "int4_weight": WeightOnly(INT4, weights=Blocked(64)),
    "fp8_weight": WeightOnly(FP8_E4M3, weights=PerChannel(axis=1)),
}
