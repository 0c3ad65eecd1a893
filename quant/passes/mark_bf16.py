"""Say in a graph what of it may be computed in bf16 where the CPU has units for that; it is fp32 everywhere else.

The graph stays as it is: NumPy, ONNX Runtime's CPU kernels and older CPUs have no bf16. An engine that can takes the hint when it
loads the graph (:mod:`reelquant.runtime.engines.session`), the gate's trial among others, so that what is judged is what runs.
"""

from __future__ import annotations

import onnx_ir as ir

from reelquant.runtime.engines.session import BF16_KEY

PASS = "bf16"


def mark_bf16(model: ir.Model, what: str) -> None:
    """``what``: both products of every attention ("attention"), or all that is not quantized ("all")."""
    model.metadata_props[BF16_KEY] = what
