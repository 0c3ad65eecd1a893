"""The table of cards, how they are named, and the least time that work takes on one."""

from __future__ import annotations

import pytest

from reelquant.runtime.engines.tensorrt.roofline import clip_seconds, run_seconds
from reelquant.runtime.engines.tensorrt.targets import TARGETS
from reelquant.runtime.errors import BadInput
from reelquant.runtime.machine.cards import CARDS, CONTEXT, card_or_memory, find_card
from reelquant.runtime.models.cogvideox.stages import Stage

GIB = 1 << 30


def test_every_card_is_one_that_engines_are_built_for() -> None:
    for card in CARDS.values():
        assert card.target in TARGETS and card.source and card.free < card.memory * GIB
        # Eight bit is twice as fast as sixteen, INT8 up to four times where 32-bit sums of floats are halved; four bit twice as eight.
        assert 1.95 <= card.rates["int8"] / card.rates["fp16"] <= 4.05
        assert ("fp8" in card.rates) == (card.capability >= (8, 9)) and ("fp4" in card.rates) == (
            card.capability >= (10, 0)
        )
        assert ("bf16" in card.rates) == (card.capability >= (8, 0))
        if "fp8" in card.rates:
            assert card.rates["fp8"] == pytest.approx(2 * card.rates["fp16"], rel=0.02)


@pytest.mark.parametrize(("text", "name"), [
    ("L4", "L4"), ("l40s", "L40S"), ("rtx4090", "RTX 4090"), ("NVIDIA GeForce RTX 4090", "RTX 4090"), ("A100 80GB", "A100"),
    ("H100 SXM", "H100"), ("h100-sxm5-80gb", "H100"), ("Tesla T4", "T4"),
    ("L40", None), ("RTX 3060 Ti", None), ("RTX 4090 Laptop", None), ("A100 40GB", None), ("H100 PCIe", None), ("", None),
])  # fmt: skip
def test_a_name_is_one_card_and_none_of_its_siblings(text: str, name: str | None) -> None:
    found = find_card(text)
    assert (found.name if found else None) == name


def test_memory_of_any_size() -> None:
    assert card_or_memory("24GB") == (None, 24 * GIB * 15 // 16 - CONTEXT) == card_or_memory(" 24 gib")
    card, free = card_or_memory("RTX 4090")
    assert card is CARDS["RTX 4090"] and free == 24 * GIB - CONTEXT
    assert card_or_memory("0.1GB") == (None, 0)
    for wrong in ("L5", "24", "-1GB", "24TB", "99999GB"):
        with pytest.raises(BadInput, match="unknown GPU .* such as 24GB, or one of T4, "):
            card_or_memory(wrong)


def test_the_least_time_is_of_products_or_of_bytes() -> None:
    card = CARDS["L4"]
    assert card.seconds("fp16", 121e12, 0) == 1 and card.seconds("fp8", 242.5e12, 1) == 1
    assert card.seconds("fp16", 1, 600e9) == 2 and card.seconds("int64", 0, 300e9) == 1
    assert card.seconds("fp32", 121e12, 0) == 2  # at TF32's rate
    assert CARDS["A100"].seconds("fp8", 1, 1) is None and CARDS["T4"].seconds("bf16", 1, 1) is None
    assert CARDS["T4"].seconds("bf16", 0, 320e9) == 1  # moved, and not multiplied


def test_a_clip_is_the_sum_of_its_runs() -> None:
    card = CARDS["L4"]
    layers = [{"format": "fp16", "flops": 121e12, "bytes": 1.0}, {"format": "fp32", "flops": 0.0, "bytes": 300e9}]
    record = {"graph": "main", "profile": {"batch": [1, 1, 1]}, "evidence": {"layers": layers}}
    assert run_seconds(layers, card) == 2 and run_seconds(None, card) is None and run_seconds([], card) is None
    stages = (Stage("transformer", {"main": 3}),)
    assert clip_seconds({"transformer": [record]}, stages, card) == {"transformer": 6}
    eight = {"graph": "main", "profile": {"batch": [1, 1, 1]}, "evidence": {"layers": [{**layers[0], "format": "fp8"}]}}
    assert clip_seconds({"transformer": [eight]}, stages, CARDS["A100"]) is None
    ranged = {**record, "profile": {"height": [4, 8, 8]}}  # whose layers have no shapes
    assert clip_seconds({"transformer": [ranged]}, stages, card) is None
