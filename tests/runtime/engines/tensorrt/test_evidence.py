"""What the builder's log says, what follows from it, and which engines are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reelquant.runtime.engines.tensorrt.evidence import Evidence, check_evidence, judge_attention, read_evidence
from reelquant.runtime.errors import EngineError

# As TensorRT-RTX 1.7.1 writes it for a layer of 2b at 17,776 tokens.
LOG = """Local timing cache in use. Profiling results in this builder pass will not be stored.
Detected 4 inputs and 1 output network tensors.
Total Host Persistent Memory: 80 bytes
Total Device Persistent Memory: 0 bytes
Max Scratch Memory: 823493120 bytes
Total Activation Memory: 823493120 bytes
Total Weights Memory: 247005952 bytes
Engine generation completed in 0.977633 seconds.
[MemUsageStats] Peak memory usage of TRT CPU/GPU memory allocators: CPU 235 MiB, GPU 0 MiB""".splitlines()
SCORES = 2 * 30 * 17_776**2


def test_a_log_is_read() -> None:
    found = read_evidence(LOG, 1.23456, 250_000_000, SCORES)
    assert found == Evidence(823_493_120, 823_493_120, 247_005_952, 235 << 20, 1.235, 250_000_000, "fused")
    assert found.as_json()["attention"] == "fused"


def test_what_a_log_does_not_say_is_not_known_and_the_engine_is_kept() -> None:
    silent = read_evidence([], 1, 1, SCORES)
    assert (silent.activation_bytes, silent.scratch_bytes, silent.weight_bytes, silent.layers) == (None,) * 4
    assert silent.attention == "not known"
    check_evidence("transformer/main", silent, 1)


@pytest.mark.parametrize(
    ("activations", "tokens", "verdict"),
    [
        (823_493_120, 17_776, "fused"),
        (37_995_000_000, 17_776, "unfused"),
        (19_500_000_000, 17_776, "unfused"),  # the scores and little else
        (25_100_000, 204, "too small to tell"),
        (90_000_000, 1_500, "fused"),
    ],
)
def test_attention_is_judged_by_its_scores(activations: int, tokens: int, verdict: str) -> None:
    assert judge_attention(activations, 2 * 30 * tokens**2) == verdict


def test_a_graph_without_attention_has_none() -> None:
    assert judge_attention(1, 0) == "none"


def test_engines_that_are_not_what_their_graph_asks_for_are_refused() -> None:
    good = read_evidence(LOG, 1, 250_000_000, SCORES)
    check_evidence("transformer/main", good, 247_005_676)
    with pytest.raises(EngineError, match=r"transformer/main: the builder did not fuse attention: 38.0 GB of act"):
        check_evidence(
            "transformer/main", replace(good, activation_bytes=37_995_000_000, attention="unfused"), 247_005_676
        )
    with pytest.raises(EngineError, match="holds 247 MB of weights where the graph stores 159 MB"):
        check_evidence("transformer/main", good, 158_600_000)
