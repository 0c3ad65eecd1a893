"""Rules about the GPUs that an engine is for: number formats that their tensor cores do not have."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from reelquant.quant.lint.finding import Finding, LintContext
from reelquant.runtime.engines.tensorrt.targets import lacking

_FORMATS = {ir.DataType.FLOAT8E4M3FN: "fp8", ir.DataType.BFLOAT16: "bf16", ir.DataType.FLOAT4E2M1: "fp4"}
_REMEDY = {"fp8": "use int8 or a 16-bit precision for it", "bf16": "every 16-bit bundle has it, in its text encoder at least: use fp32",
           "fp4": "use fp8 for it"}  # fmt: skip


def formats(context: LintContext) -> Iterator[Finding]:
    first: dict[str, ir.Node] = {}
    for node in context.nodes:
        for value in (*node.inputs, *node.outputs):
            format = _FORMATS.get(value.dtype) if value is not None and value.dtype is not None else None
            if format:
                first.setdefault(format, node)
    for format, node in first.items():
        for target in context.targets:
            fault = lacking((target,), {format})
            if fault:
                yield Finding(
                    "gpu-format", node.name or "", fault, f"{_REMEDY[format]}, or leave {target} out of --gpu"
                )
