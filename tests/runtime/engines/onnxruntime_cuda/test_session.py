"""A session whose values are on a device, with the host for one, on the real onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from reelquant.runtime.engines.onnxruntime_cuda.session import DeviceSession, DeviceValue
from reelquant.runtime.errors import EngineError

STREAM = """<ir_version: 10, opset_import: ["" : 21]>
stream (float[1, 2] "cache.in", float[n, 2] x, float[2] scale) => (float[m, 2] y, float[1, 2] "next_cache.in")
<int64[1] start = {-1}, int64[1] end = {9999}, int64[1] axis = {0}> {
 joined = Concat <axis = 0> ("cache.in", x)
 y = Mul(joined, scale)
 "next_cache.in" = Slice(joined, start, end, axis)
}"""
HALF = """<ir_version: 10, opset_import: ["" : 21]>
stream (bfloat16[1, 2] "cache.in", float[n, 2] x) => (float[m, 2] y, bfloat16[1, 2] "next_cache.in")
<int64[1] start = {-1}, int64[1] end = {9999}, int64[1] axis = {0}> {
 half = Cast <to = 16> (x)
 joined = Concat <axis = 0> ("cache.in", half)
 y = Cast <to = 1> (joined)
 "next_cache.in" = Slice(joined, start, end, axis)
}"""
FIRST = """<ir_version: 10, opset_import: ["" : 21]>
first (float[n, 2] x) => (bfloat16[n, 2] "next_cache.in") { "next_cache.in" = Cast <to = 16> (x) }"""


def opened(text: str, folder: Path, lean: bool = False) -> DeviceSession:
    file = folder / "graph.onnx"
    ir.save(ir.from_onnx_text(text), file)
    loaded = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return DeviceSession(onnxruntime, loaded, file, lean=lean)


@pytest.mark.parametrize("lean", [False, True])
def test_what_is_kept_stays_and_is_written_over(tmp_path: Path, lean: bool) -> None:
    session = opened(STREAM, tmp_path, lean)
    cache, x, scale = (
        np.zeros((1, 2), np.float32),
        np.arange(6, dtype=np.float32).reshape(3, 2),
        np.array([2, 3], np.float32),
    )
    results, kept = session.run_keeping({"cache.in": cache, "x": x, "scale": scale}, "next_cache.in".__eq__)
    assert np.array_equal(results["y"], np.concatenate([cache, x]) * scale) and results.keys() == {"y"}
    value = kept["next_cache.in"]
    assert isinstance(value, DeviceValue) and (value.shape, value.dtype) == ((1, 2), "float")
    address, last = value.value.data_ptr(), x[-1:]
    for turn in range(3):
        x = x[::-1] + turn
        fed = {"cache.in": kept["next_cache.in"], "x": x, "scale": scale}
        results, kept = session.run_keeping(fed, "next_cache.in".__eq__, kept)
        assert np.array_equal(results["y"], np.concatenate([last, x]) * scale)
        assert kept["next_cache.in"] is value and value.value.data_ptr() == address
        last = x[-1:]
    assert np.array_equal(value.value.numpy(), last)


def test_results_are_the_callers(tmp_path: Path) -> None:
    session = opened(STREAM, tmp_path)
    feeds = {
        "cache.in": np.ones((1, 2), np.float32),
        "x": np.zeros((1, 2), np.float32),
        "scale": np.ones(2, np.float32),
    }
    first = session.run(feeds)
    session.run({**feeds, "x": np.full((1, 2), 9, np.float32)})
    assert np.array_equal(first["y"], [[1, 1], [0, 0]]) and first["y"].flags.c_contiguous
    assert first.keys() == {"y", "next_cache.in"}
    gaps = session.run({**feeds, "x": np.arange(8, dtype=np.float32).reshape(2, 4)[:, ::2]})["y"]
    assert np.array_equal(gaps, [[1, 1], [0, 2], [4, 6]])


def test_a_constant_is_brought_once(tmp_path: Path) -> None:
    session = opened(STREAM, tmp_path)
    scale = np.array([2, 3], np.float32)
    first, second = (session.put({"scale": scale, "unknown": scale}) for _ in range(2))
    assert first.keys() == {"scale"} and first["scale"] is second["scale"]
    other = session.put({"scale": scale.copy()})["scale"]
    assert other is not first["scale"]
    x = np.ones((1, 2), np.float32)
    assert np.array_equal(session.run({"cache.in": x, "x": x, **first})["y"], [[2, 3], [2, 3]])


def test_bf16_stays_on_the_device(tmp_path: Path) -> None:
    x = np.array([[1.00390625, 3]], np.float32)  # halfway between two of bf16's, so the even one
    _, kept = opened(FIRST, tmp_path).run_keeping({"x": x}, "next_cache.in".__eq__)
    value = kept["next_cache.in"]
    assert isinstance(value, DeviceValue) and value.dtype == "bfloat16"
    session = opened(HALF, tmp_path)
    results, again = session.run_keeping({"cache.in": value, "x": x + 1}, "next_cache.in".__eq__, kept)
    assert np.array_equal(results["y"], [[1, 3], [2, 4]]) and again["next_cache.in"] is value


def test_a_run_that_fails_says_what_to_do(tmp_path: Path) -> None:
    session = opened(STREAM, tmp_path)
    feeds = {
        "cache.in": np.ones((1, 2), np.float32),
        "x": np.zeros((1, 3), np.float32),
        "scale": np.ones(2, np.float32),
    }
    with pytest.raises(EngineError, match=r"failed while it ran .*graph\.onnx: .*smaller size"):
        session.run(feeds)
