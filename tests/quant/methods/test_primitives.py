"""Scales, quantize and dequantize, bit for bit against references that share no code with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from reelquant.quant.formats import FP8_E4M3, INT8, Format, PerChannel, PerTensor
from reelquant.quant.methods.primitives import SMALLEST_SCALE, dequantize, quantize, scale_from_absmax, weight_scales

FORMATS = pytest.mark.parametrize("format", [INT8, FP8_E4M3], ids=["int8", "fp8"])
MAX = float(np.finfo(np.float32).max)


def e4m3_value(code: int) -> float:
    """The value of an E4M3 byte, from its fields (OCP OFP8, section 5)."""
    sign, exponent, mantissa = -1.0 if code & 0x80 else 1.0, code >> 3 & 15, code & 7
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


def reference(value: np.float32, scale: np.float32, format: Format) -> int:
    """The byte of one value: of all codes the nearest, of two equally near the even one."""
    # A float32 quotient, as ONNX has it (through float64 it rounds the same); far out, saturation decides.
    quotient = float(np.float32(min(max(float(value) / float(scale), -1e3), 1e3)))
    if format is INT8:
        codes: dict[int, float] = {code & 0xFF: float(code) for code in range(-127, 128)}
    else:
        codes = {code: e4m3_value(code) for code in range(256) if code & 0x7F != 0x7F}
    sign = 0x80 if np.signbit(value) and format is FP8_E4M3 else 0
    return min(codes, key=lambda code: (abs(codes[code] - quotient), code & 1, (code & 0x80) != sign))


def as_bytes(array: NDArray[Any]) -> list[int]:
    return array.view(np.uint8).reshape(-1).tolist()


@FORMATS
@pytest.mark.parametrize("scale", [1.0, 0.037, 3e-5, 812.5])
def test_quantize_is_the_reference_bit_for_bit(format: Format, scale: float) -> None:
    rng = np.random.default_rng(0)
    spread = rng.normal(0, 1, 300) * 2.0 ** rng.integers(-12, 11, 300) * scale
    ties = (np.arange(-40, 40) + 0.5) * scale  # exact halves where scale is a power of two
    values = np.concatenate([spread, ties, [0, -0.0, 500 * scale, -500 * scale, MAX, -MAX]]).astype(np.float32)
    step = np.array(scale, np.float32)
    expected = [reference(value, np.float32(scale), format) for value in values]
    assert as_bytes(quantize(values, step, format)) == expected


@FORMATS
def test_a_tensor_of_zeros_has_scale_one_and_stays_zero(format: Format) -> None:
    weight = np.zeros((4, 3), np.float32)
    weight[:, 1] = [1, -2, 0.5, 0]
    assert weight_scales(np.zeros((4, 3), np.float32), format, PerTensor()).tolist() == 1.0
    scales = weight_scales(weight, format, PerChannel(1))
    assert scales[[0, 2]].tolist() == [1, 1] and scales[1] == np.float32(2) / np.float32(format.largest)
    back = dequantize(quantize(weight, scales, format, 1), scales, 1)
    assert np.isfinite(back).all() and not back[:, [0, 2]].any() and back[1, 1] == -2


@FORMATS
@pytest.mark.parametrize("absmax", [1e-45, 1e-38, 1e-30, 1e-6, 1e30, MAX])
def test_extreme_scales_are_normal_and_keep_values_finite(format: Format, absmax: float) -> None:
    scale = scale_from_absmax(absmax, format)
    assert scale.dtype == np.float32 and scale.shape == () and SMALLEST_SCALE <= scale < np.inf
    values = np.array([absmax, -absmax, absmax / 3], np.float32)
    back = dequantize(quantize(values, scale, format), scale)
    assert np.isfinite(back).all()
    assert np.abs(back - values).max() <= max(absmax / 16, float(SMALLEST_SCALE))


@FORMATS
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1.0])
def test_what_has_no_scale_is_refused(format: Format, bad: float) -> None:
    with pytest.raises(ValueError, match="no scale"):
        scale_from_absmax(bad, format)
    if bad != -1:
        with pytest.raises(ValueError, match="no scale"):
            weight_scales(np.array([[1, bad], [2, 3]], np.float32), format, PerChannel(1))


@FORMATS
@pytest.mark.parametrize("absmax", [1e-40, 1e-20, 0.3, 7.0, 1e20, MAX])
def test_every_code_survives_dequantize_then_quantize(format: Format, absmax: float) -> None:
    codes = np.arange(256, dtype=np.uint8)
    codes = codes[(codes != 0x80) if format is INT8 else (codes & 0x7F != 0x7F)]
    scale = scale_from_absmax(absmax, format)
    again = quantize(dequantize(codes.view(format.dtype), scale), scale, format)
    assert as_bytes(again) == codes.tolist()


@FORMATS
@pytest.mark.parametrize("seed", range(5))
def test_quantizing_twice_changes_nothing_and_the_error_is_bounded(format: Format, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.normal(0, 1, (24, 17)) * np.exp(rng.normal(0, 2, 17))).astype(np.float32)
    errors = []
    for granularity, axis in ((PerTensor(), 0), (PerChannel(1), 1)):
        scales = weight_scales(weight, format, granularity)
        assert scales.shape == (() if axis == 0 else (17,))
        once = quantize(weight, scales, format, axis)
        back = dequantize(once, scales, axis)
        assert as_bytes(quantize(back, scales, format, axis)) == as_bytes(once)
        # Half a step: of the INT8 grid; of E4M3's 3 bits of mantissa, or of its smallest step.
        half = scales / 2 if format is INT8 else np.maximum(np.abs(weight) / 16, scales * 2.0**-10)
        assert np.all(np.abs(back - weight) <= half * (1 + 1e-5))
        errors.append(np.mean((back - weight) ** 2))
    # Only of INT8: E4M3's steps shrink with the value, so channels gain nothing sure from scales of their own.
    assert format is FP8_E4M3 or errors[1] < errors[0]


def test_channel_axis_chooses_rows_or_columns() -> None:
    weight = np.array([[1, -20, 3], [4, 5, -60]], np.float32)
    assert np.array_equal(weight_scales(weight, INT8, PerChannel(0)) * 127, np.array([20, 60], np.float32))
    assert np.array_equal(weight_scales(weight, INT8, PerChannel(1)) * 127, np.array([4, 20, 60], np.float32))
    scales = weight_scales(weight, INT8, PerChannel(0))
    assert quantize(weight, scales, INT8, 0).tolist() == [[6, -127, 19], [8, 11, -127]]
