"""``benchmarks.gpu_plan``: an engine at full depth, from those of two layers and of three."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.gpu_plan import Way, deeper, tables
from reelquant.runtime.engines.device_memory import StageMemory
from reelquant.runtime.machine.cards import CARDS
from reelquant.runtime.sizes import Size

GEMM, HEAD = {"kind": "gemm", "format": "fp8"}, {"kind": "other", "format": "fp32"}


def _evidence(depth: int, **more: object) -> dict[str, Any]:
    layers = [
        {**GEMM, "count": 4 * depth, "flops": 8e9 * depth, "bytes": 1e6 * depth},
        {**HEAD, "count": 1, "flops": 0.0, "bytes": 5e6},
    ]
    return {"engine_bytes": 50 + 100 * depth, "activation_bytes": 7, "layers": layers, **more}


def test_every_further_layer_takes_what_the_third_did() -> None:
    found = deeper(_evidence(2), _evidence(3, activation_bytes=6), 30)
    assert (found["engine_bytes"], found["activation_bytes"]) == (50 + 100 * 30, 7)
    gemm, head = found["layers"]
    assert gemm == {**GEMM, "count": 120, "flops": 240e9, "bytes": 30e6} and head == {
        **HEAD,
        "count": 1,
        "flops": 0.0,
        "bytes": 5e6,
    }
    # A kind of layers that only the deeper engine has is counted from there.
    with_more = _evidence(
        3, layers=[*_evidence(3)["layers"], {**HEAD, "kind": "attention", "count": 1, "flops": 2.0, "bytes": 1.0}]
    )
    assert deeper(_evidence(2), with_more, 4)["layers"][-1]["flops"] == pytest.approx(4.0)


def test_the_tables_are_markdown() -> None:
    stages = (
        StageMemory("transformer", 3 * 10**9, 10**9, 0),
        StageMemory("vae_decoder", 10**9, 5 * 10**9, 0, 6 * 10**9),
    )
    seconds: dict[str, dict[str, float] | None] = dict.fromkeys(CARDS)
    seconds["H100"] = {"transformer": 15.0, "vae_decoder": 0.5}
    text = list(tables("cogvideox-2b", Size(49, 480, 720), [Way("fp16", False, stages, seconds)]))
    assert "| transformer | fp16 | 3.00 | 1.00 | 0.00 | 0.00 | 4.00 |" in text
    assert "| fp16 | whole | 15.00 | does not fit | keep | keep | keep | keep |" in text
    assert "| H100 | 0.30; 0.5; 15.5 | 45 (CogVideo README, fp16) |" in text and "| T4 | – | – |" in text
