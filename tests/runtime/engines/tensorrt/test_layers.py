"""The inspector's text, as NVIDIA documents it for TensorRT 10 and 11; real engines are asked on a GPU (test_gpu.py)."""

from __future__ import annotations

import json
from typing import Any

from reelquant.runtime.engines.tensorrt.layers import count_layers
from tests.conftest import BundleMaker


def layer(key: str, *formats: str) -> dict[str, Any]:
    return {"Name": "gemm", "LayerType": "kgen", "Outputs": [{"Name": "y", "Dimensions": [1], key: f} for f in formats]}


def test_layers_are_counted_by_the_format_of_their_first_output() -> None:
    ten = [
        "Row major linear FP32", "Row major linear FP16 format", "Half", "FP8 E4M3", "Row major linear BFloat16 format",
        "Thirty-two wide channel vectorized row major Int8 format", "FP4 E2M1", "Int64", "Bool", "N/A due to dynamic shapes",
    ]  # fmt: skip
    layers: list[Any] = [layer("Format/Datatype", text, "Int32") for text in ten]
    layers += [layer("DataType", "Float"), layer("DataType", "FP8"), layer("DataType"), "conv1 + relu"]
    assert count_layers(json.dumps({"Layers": layers, "Bindings": ["x"]})) == {
        "bf16": 1, "bool": 1, "fp16": 2, "fp32": 2, "fp4": 1, "fp8": 2, "int64": 1, "int8": 1, "unknown": 3
    }  # fmt: skip


def test_without_a_gpu_nothing_is_claimed(rtx_bundle: BundleMaker) -> None:
    for record in rtx_bundle("t2v", "fp8").manifest.engines["tensorrt-rtx"]["engines"]:
        assert record["evidence"]["layers"] is None
