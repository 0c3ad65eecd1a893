"""Where a number format computes: what an engine must know of a format that it has never heard of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Support:
    """``gpu`` is the least compute capability (89 is 8.9) of GPUs whose tensor cores multiply in the format; ``cpu`` says
    whether engines on a CPU compute the graphs too, ``dynamic`` whether TensorRT builds them for a range of sizes.

    Whoever writes a format into a graph writes this into the manifest, so that no engine has a list of formats.
    """

    gpu: int = 75
    cpu: bool = True
    dynamic: bool = True


# What is not quantized computes in one of these.
BASES = {"fp32": Support(), "fp16": Support(), "bf16": Support(gpu=80)}
