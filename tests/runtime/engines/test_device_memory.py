"""How a clip is run in the memory that a device has: kept, reloaded, or refused with what would fit."""

from __future__ import annotations

import pytest

from reelquant.runtime.engines.device_memory import ClipMemory, StageMemory, check_room, choose, describe, kept_bytes
from reelquant.runtime.errors import BadInput

GB = 10**9
TEXT = StageMemory("text_encoder", 9 * GB, GB // 10, 0)
TRANSFORMER = StageMemory("transformer", 11 * GB, GB, GB // 2)
DECODER = StageMemory("vae_decoder", GB // 2, 5 * GB, GB // 10, 6 * GB)
STAGES = (TEXT, TRANSFORMER, DECODER)
TILES = StageMemory("vae_decoder", GB // 2, 2 * GB, GB // 10, 2 * GB)


def test_activations_are_shared_and_all_else_adds_up() -> None:
    assert TRANSFORMER.alone == 12.5 * GB and DECODER.alone == 11.6 * GB
    assert kept_bytes(STAGES) == (9 + 11.5 + 6.6 + 5) * GB
    assert "kept loaded: 32.10 GB; one stage at a time: 12.50 GB (transformer)" in list(describe(STAGES))


@pytest.mark.parametrize(("free", "way"), [(33, "keep"), (32, "reload"), (13, "reload"), (12, None)])
def test_what_fits_decides(free: int, way: str | None) -> None:
    assert choose(STAGES, free * GB) == way
    if way:
        assert check_room(STAGES, free * GB, None, dict) == (way == "keep")


def test_what_was_said_is_taken_or_refused() -> None:
    assert check_room(STAGES, 33 * GB, False, dict) is False
    assert check_room(STAGES, 33 * GB, True, dict) is True
    with pytest.raises(
        BadInput, match=r"where 32.00 GB are free: all stages together need 32.10 GB \(text_encoder 9.10"
    ) as refused:
        check_room(STAGES, 32 * GB, True, dict)
    assert "it fits with networks loaded one at a time" in str(refused.value)
    with pytest.raises(BadInput, match="all stages together"):
        check_room(STAGES, 8 * GB, True, dict)


def test_a_refusal_says_which_stage_needs_what_and_what_would_fit() -> None:
    ways = {"--tiled": (*STAGES[:2], DECODER), "--size 25x480x720 --tiled": (*STAGES[:2], TILES)}
    clip = ClipMemory((TEXT, DECODER), lambda: ways)
    with pytest.raises(BadInput) as refused:
        check_room(clip.stages, 11 * GB, None, lambda: {"--tiled": clip.stages, "--size 9x96x96": (TEXT, TILES)})
    assert str(refused.value) == (
        "this clip does not fit on the GPU, where 11.00 GB are free: vae_decoder needs 11.60 GB (0.50 GB of weights, 5.00 GB of "
        "activations, 0.10 GB in and out, 6.00 GB of caches); what fits, by estimate: --size 9x96x96"
    )
    # Weights that are too large for the card fit at no size: that is said apart, and sizes are for the rest.
    with pytest.raises(BadInput) as refused:
        check_room(STAGES, 8 * GB, None, clip.ways)
    assert "text_encoder needs 9.10 GB" in str(refused.value) and "transformer needs 12.50 GB" in str(refused.value)
    assert "reelquant embed there, and --embeddings here" in str(refused.value)
    assert "transformer must have smaller weights: --precision fp8 or int8" in str(refused.value)
    assert "what also fits, by estimate: --size 25x480x720 --tiled" in str(refused.value)
    with pytest.raises(BadInput, match="no smaller size fits either"):
        check_room((DECODER,), GB, None, lambda: {"--tiled": (TILES,)})
