"""Number formats of 8 bit or fewer, and how many values share a scale."""

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
    """One scale per ``size`` neighbours along the summed axis: a weight [K, N] has scales [K / size, N]."""

    size: int


Granularity: TypeAlias = PerTensor | PerChannel
