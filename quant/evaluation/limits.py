"""How far a quantized transformer may be from its reference before the gate refuses it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The most relative L2 of a whole run, of what half a block hands on, and of a linear's output; the least cosine of a
    run; the most that a scale may reach beyond the largest value seen; and the most relative L2 of a linear's output on the
    engine to the same on the reference engine.

    Two and a half to four and a half times what the demo's good bundles show at most (docs/numerics.md), so that a limit speaks of faults and not of taste. Engines
    differ where a value lies on a rounding boundary (INT8: 0.0004 at most with VNNI, 0.0007 on AVX2, and 0.03 where sums
    saturate) and where OpenVINO rounds to FP8 by way of fp16.
    """

    step: float
    part: float
    linear: float
    cosine: float
    reach: float
    engine: float


INT8 = Limits(0.10, 0.07, 0.20, 0.995, 4.0, 0.002)
FP8 = Limits(0.15, 0.12, 0.27, 0.99, 4.0, 0.09)
INT4 = Limits(0.20, 0.12, 0.30, 0.98, 4.0, 0.002)
# Of a transformer that is not quantized.
BASES = {
    "fp16": Limits(0.01, 0.005, 0.005, 0.9999, 4.0, 0.005),
    "bf16": Limits(0.08, 0.04, 0.04, 0.996, 4.0, 0.04),
}
