"""Rules about the GPUs that an engine is for: number formats that their tensor cores do not have."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from reelquant.quant.lint.finding import Finding, LintContext
from reelquant.quant.numerics import NUMERICS, High
from reelquant.runtime.bundle.support import BASES, Support
from reelquant.runtime.engines.tensorrt.targets import lacking

_KNOWN = {name: numerics for name, numerics in NUMERICS.items() if not isinstance(numerics, High)}
_SUPPORT = {"bf16": BASES["bf16"], **{name: each.support(each.bases[-1]) for name, each in _KNOWN.items()}}
# What shows that a graph computes so: operators that some numerics add, and types; a type is of those that add none first.
_OF_OPERATOR = {operator: name for name, each in _KNOWN.items() for operator in each.operators}
_OF_TYPE = {ir.DataType.BFLOAT16: "bf16"}
for _name in sorted(_KNOWN, key=lambda name: bool(_KNOWN[name].operators)):
    _OF_TYPE.setdefault(ir.DataType.from_numpy(_KNOWN[_name].format.dtype), _name)


def formats(context: LintContext) -> Iterator[Finding]:
    first: dict[str, ir.Node] = {}
    for node in context.nodes:
        held = {
            _OF_TYPE.get(value.dtype) for value in (*node.inputs, *node.outputs) if value is not None and value.dtype
        }
        for format in sorted({format for format in (*held, _OF_OPERATOR.get(node.op_type)) if format}):
            first.setdefault(format, node)
    for format, node in first.items():
        for target in context.targets:
            fault = lacking((target,), {format: _SUPPORT[format]})
            if fault:
                yield Finding(
                    "gpu-format", node.name or "", fault, f"{_remedy(format)}, or leave {target} out of --gpu"
                )


def _remedy(format: str) -> str:
    if format == "bf16":
        return "every 16-bit bundle has it, in its text encoder at least: use fp32"
    newer: Support = _SUPPORT["fp8"]
    return "use fp8 for it" if _SUPPORT[format].gpu > newer.gpu else "use int8 or a 16-bit precision for it"
