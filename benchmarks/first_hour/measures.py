"""What the sections share: the demo's request, and how times and memory are said."""

from __future__ import annotations

import argparse
import statistics
from typing import Any

PROMPT = "a red circle moves right on a white background"
STEPS = 8
Facts = dict[str, Any]


def gpu_bytes_used(arguments: argparse.Namespace) -> int | None:
    """Of the whole GPU, as the driver counts them."""
    if arguments.device == "cpu":
        return None
    from cuda.bindings import runtime

    _, free, total = runtime.cudaMemGetInfo()
    return int(total - free)


def spread(taken: list[float]) -> Facts:
    return {"median": round(statistics.median(taken), 5), "least": round(min(taken), 5), "most": round(max(taken), 5)}
