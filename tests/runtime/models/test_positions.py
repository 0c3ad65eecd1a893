"""Added positions against diffusers' own, and the sizes that a variant has none for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.variants import VARIANTS
from reelquant.runtime.errors import BadInput
from reelquant.runtime.models.cogvideox.positions import check_positions, position_inputs, sincos_positions

LEARNED = VARIANTS["cogvideox-5b-i2v"].reduced().transformer


@pytest.mark.parametrize("grid", [(13, 30, 45), (3, 4, 6), (1, 1, 1), (5, 7, 2)])
@pytest.mark.parametrize("dim", [1920, 64])
def test_added_positions_are_those_of_diffusers(grid: tuple[int, int, int], dim: int) -> None:
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    wanted = embeddings.get_3d_sincos_pos_embed(dim, (grid[2], grid[1]), grid[0], 1.875, 1.0, output_type="pt")
    found = sincos_positions(dim, grid, 1.0, 1.875)
    assert found.dtype == np.float32 and found.shape == (grid[0] * grid[1] * grid[2], dim)
    assert np.abs(found - wanted.flatten(0, 1).float().numpy()).max() <= 1e-6


def test_each_variant_has_its_inputs() -> None:
    found = {
        name: set(position_inputs(variant.reduced().transformer, 4, (13, 16, 8, 12)))
        for name, variant in VARIANTS.items()
    }
    rotary = {"rotary_cos", "rotary_sin"}
    assert found == {
        "cogvideox-2b": {"positions"},
        "cogvideox-5b": rotary,
        "cogvideox-5b-i2v": {*rotary, "positions"},
        "cogvideox1.5-5b": rotary,
        "cogvideox1.5-5b-i2v": rotary,
    }


def test_learned_positions_hold_for_the_trained_number_of_frames(tmp_path: Path) -> None:
    table = np.random.default_rng(0).standard_normal((4 + 13 * 4 * 6, 128), dtype=np.float32)
    np.save(tmp_path / "positions.npy", table)
    made = position_inputs(LEARNED, 4, (13, 16, 8, 12), tmp_path / "positions.npy")["positions"]
    assert np.array_equal(made, table)
    other = position_inputs(LEARNED, 4, (3, 16, 8, 12), tmp_path / "positions.npy")["positions"]
    assert not other[:4].any() and np.array_equal(other[4:], sincos_positions(128, (3, 4, 6), 1.0, 1.875))


@pytest.mark.parametrize(
    ("config", "size", "message"),
    [
        (LEARNED, (8, 14), "this model learned positions for latents of 8x12 alone, and not for 8x14"),
        (VARIANTS["cogvideox1.5-5b"].transformer, (98, 170), "latents of 98x170 exceed this model's 96x170"),
    ],
)
def test_sizes_without_positions(config: dict[str, Any], size: tuple[int, int], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        check_positions(config, *size)
    check_positions(config, config["sample_height"], config["sample_width"])
