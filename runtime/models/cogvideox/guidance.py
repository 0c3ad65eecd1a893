"""Classifier-free guidance, as diffusers' CogVideoX pipelines apply it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.engines.sums import as_float32


def combine(uncond: NDArray[Any], cond: NDArray[Any], scale: float) -> NDArray[np.float32]:
    """Return ``uncond + scale·(cond − uncond)`` in float32, or as a sum of sums; eq. 6 of https://arxiv.org/abs/2207.12598, s = 1 + w.

    Raises:
        ValueError: the shapes differ.
    """
    if uncond.shape != cond.shape:
        raise ValueError(f"unconditional {uncond.shape} and conditional {cond.shape} outputs differ in shape")
    base, aim = as_float32(uncond), as_float32(cond)
    combined: NDArray[np.float32] = base + np.float32(scale) * (aim - base)
    return combined


def dynamic_scale(scale: float, timestep: int, steps: int) -> float:
    """Return the guidance scale, 1…1+scale, that ``use_dynamic_cfg`` gives at a training ``timestep`` of the run.

    ``1 + scale·(1 − cos(π·((steps − timestep)/steps)⁵))/2``, from CogVideoXPipeline. The formula wants a step number
    and diffusers gives it a timestep, so early in a run the power is huge and the scale all but arbitrary; it is kept,
    since that is what "dynamic" clips of these checkpoints were made with.
    """
    return 1 + scale * ((1 - math.cos(math.pi * ((steps - int(timestep)) / steps) ** 5.0)) / 2)
