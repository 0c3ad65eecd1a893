"""Which number formats an engine's layers really have, asked of TensorRT's engine inspector: that needs its GPU."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from reelquant.runtime.engines.tensorrt.flavor import Flavor

# What the inspector writes of a layer's outputs: "Half", "FP8", "Row major linear FP32", "BFloat16", …
_FORMATS = {
    "fp4": r"fp4|e2m1",
    "fp8": r"fp8|e4m3",
    "int8": r"\bint8\b",
    "bf16": r"bf16|bfloat16",
    "fp16": r"fp16|half",
    "fp32": r"fp32|float",
    "int64": r"int64",
    "int32": r"int32",
    "bool": r"bool",
}


def engine_layers(flavor: Flavor, engine: Any) -> dict[str, int] | None:
    """Layers by the format of their first output, ``{"fp8": 120, "fp16": 31}``; None where the engine does not load.

    ``engine`` holds its bytes; they are code, so it must be one's own.
    """
    trt = flavor.module()
    logger = trt.Logger(trt.Logger.ERROR)
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(engine) if runtime is not None else None
    if engine is None:
        return None
    inspector = engine.create_engine_inspector()
    return count_layers(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def count_layers(text: str) -> dict[str, int]:
    """As :func:`engine_layers`, of the inspector's JSON: ``{"Layers": [{"Outputs": [{"Format/Datatype": …}]}]}``.

    TensorRT 11 may name the format ``DataType``; layers of engines that were built without details are plain names. What
    is not known counts as "unknown", since the text is for people and changes from version to version.
    """
    found: Counter[str] = Counter()
    for layer in json.loads(text).get("Layers", []):
        outputs = layer.get("Outputs", []) if isinstance(layer, dict) else []
        found[_format(outputs[0]) if outputs else "unknown"] += 1
    return dict(sorted(found.items()))


def _format(output: dict[str, Any]) -> str:
    said = str(output.get("DataType") or output.get("Format/Datatype") or output.get("Format") or "").lower()
    return next((name for name, pattern in _FORMATS.items() if re.search(pattern, said)), "unknown")
