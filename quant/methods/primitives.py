"""Scales, quantize and dequantize in numpy: the arithmetic of ONNX QuantizeLinear with a zero point of 0."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from reelquant.quant.formats import Blocked, Format, Granularity, PerChannel

Floats = NDArray[np.float32]

# E4M3's smallest step is 2⁻⁹ of its scale; with scales of at least this, that step is still a normal float32, which
# matters because engines flush denormals to zero.
SMALLEST_SCALE = np.float32(np.finfo(np.float32).tiny * 2**9)
_MAX = np.finfo(np.float32).max
_BASES = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def scale_from_absmax(absmax: ArrayLike, format: Format) -> Floats:
    """Absolute maxima [...] → scales float32 [...], always positive and normal: ``absmax / format.largest``.

    A maximum of 0 gives 1: any scale maps zeros to zeros, and 1 is the one that survives a cast to 16 bit.

    Raises:
        ValueError: a maximum is negative, infinite or NaN.
    """
    maxima = np.asarray(absmax, dtype=np.float32)
    if not np.all(np.isfinite(maxima) & (maxima >= 0)):
        raise ValueError("it has a value that is infinite or not a number, so it has no scale")
    # Rounded down at the far end, so that ``largest * scale`` is finite.
    largest_scale = np.nextafter(_MAX / np.float32(format.largest), np.float32(0))
    scales = np.clip(maxima / np.float32(format.largest), SMALLEST_SCALE, largest_scale)
    return np.asarray(np.where(maxima > 0, scales, np.float32(1)), dtype=np.float32)


def weight_scales(weight: NDArray[Any], format: Format, granularity: Granularity | Blocked) -> Floats:
    """Scales of a weight [K, N]: per tensor → [], per channel on axis 1 → [N], on axis 0 → [K], in blocks → [K / size, N].

    Raises:
        ValueError: the weight has an infinity or a NaN.
    """
    if isinstance(granularity, Blocked):
        weight = weight.reshape(-1, granularity.size, weight.shape[1])
        return scale_from_absmax(np.maximum(weight.max(axis=1), -weight.min(axis=1)), format)
    # max(-min, max) needs no copy of the weight, unlike max(abs).
    axes = None
    if isinstance(granularity, PerChannel):
        axes = tuple(axis for axis in range(weight.ndim) if axis != granularity.axis)
    return scale_from_absmax(np.maximum(weight.max(axis=axes), -weight.min(axis=axes)), format)


def quantize(values: NDArray[Any], scale: Floats, format: Format, axis: int = 0) -> NDArray[Any]:
    """Finite values [...] → ``format.dtype`` [...]: ``values / scale``, rounded half to even, saturated at ±largest.

    A scale [C] runs along ``axis``; a scale [] serves every value; scales [K / size, N] those of [K, N] in blocks. Engines saturate INT8 at -128 instead of -127; only
    an activation below its calibrated range can tell.
    """
    with np.errstate(over="ignore"):  # beyond float32 is beyond ±largest too
        steps: Floats = np.asarray(values / _along(scale, axis, values.shape), dtype=np.float32)
    if format.name.startswith("int"):  # ml_dtypes' int4 is of no kind that NumPy knows
        np.rint(steps, out=steps)
    # E4M3 too: a cast of ml_dtypes turns overflow into NaN.
    np.clip(steps, -format.largest, format.largest, out=steps)
    return steps.astype(format.dtype)


def dequantize(quantized: NDArray[Any], scale: Floats, axis: int = 0) -> Floats:
    """``quantized * scale`` as float32 [...]; scales as for :func:`quantize`."""
    return np.asarray(quantized.astype(np.float32) * _along(scale, axis, quantized.shape), dtype=np.float32)


def _along(scale: Floats, axis: int, shape: tuple[int, ...]) -> Floats:
    """Scale [C] → [1, …, C, …, 1] of as many dimensions as ``shape``; blocks' → one for each row; a scale [] stays."""
    if scale.ndim == 0:
        return scale
    if scale.ndim == 2:
        return np.repeat(scale, shape[0] // scale.shape[0], axis=0)
    return scale.reshape([-1 if i == axis else 1 for i in range(len(shape))])


def in_base(values: NDArray[Any], base: str) -> Floats:
    """The nearest numbers of ``base`` ("fp32", "fp16", "bf16") to ``values`` [...], as float32."""
    return np.asarray(values, np.float32).astype(_BASES[base]).astype(np.float32)


def representable(scales: Floats, base: str) -> Floats:
    """The smallest numbers of ``base`` ("fp32", "fp16", "bf16") that are not below ``scales``, as float32.

    Upwards, since a smaller scale would clip the largest values.

    Raises:
        ValueError: a scale is beyond the largest of ``base``.
    """
    if base == "fp32":
        return scales
    dtype = _BASES[base]
    with np.errstate(over="ignore"):
        nearest = scales.astype(dtype)
    above = np.nextafter(nearest, np.asarray(np.inf, dtype))
    found = np.where(nearest.astype(np.float32) < scales, above, nearest).astype(np.float32)
    if not np.isfinite(found).all():
        raise ValueError(f"its scale {float(scales.max()):.3g} is beyond what {base} can hold")
    return np.asarray(found, np.float32)
