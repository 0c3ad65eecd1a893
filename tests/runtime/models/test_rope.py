"""Rotary tables against those that diffusers' pipeline hands its transformer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import CogVideoXPipeline
from numpy.typing import NDArray

from demo.architecture import TRANSFORMER
from reelquant.runtime.errors import BadInput, BundleError
from reelquant.runtime.models.cogvideox.rope import rotary_tables

FIVE_B = {"attention_head_dim": 64, "patch_size": 2, "patch_size_t": None, "sample_height": 60, "sample_width": 90}
ONE_FIVE = {**FIVE_B, "patch_size_t": 2, "sample_height": 96, "sample_width": 170}


def reference(config: dict[str, Any], frames: int, height: int, width: int) -> tuple[NDArray[Any], NDArray[Any]]:
    known = SimpleNamespace(**{"patch_size_t": None, **config})
    pipeline: Any = SimpleNamespace(vae_scale_factor_spatial=8, transformer=SimpleNamespace(config=known))
    cos, sin = CogVideoXPipeline._prepare_rotary_positional_embeddings(
        pipeline, 8 * height, 8 * width, frames, torch.device("cpu")
    )
    return cos.numpy(), sin.numpy()


@pytest.mark.parametrize(
    ("config", "frames", "height", "width"),
    [
        (FIVE_B, 13, 60, 90),  # 5b as trained
        (FIVE_B, 13, 90, 60),  # upright: cropped left and right
        (FIVE_B, 9, 32, 64),  # wide: cropped above and below
        (FIVE_B, 5, 34, 86),  # steps that no float32 holds exactly
        (FIVE_B, 3, 58, 62),
        (FIVE_B, 1, 2, 90),  # one row
        (FIVE_B, 2, 60, 2),  # one column
        (FIVE_B, 3, 120, 180),  # larger than trained
        ({**FIVE_B, "attention_head_dim": 48}, 4, 44, 70),
        (TRANSFORMER, 5, 12, 12),  # the demo
        (TRANSFORMER, 5, 8, 16),
        (ONE_FIVE, 22, 96, 170),
        (ONE_FIVE, 21, 60, 90),  # an odd count: the last token is half padding
        (ONE_FIVE, 1, 2, 2),
    ],
)
def test_tables_are_those_of_diffusers(config: dict[str, Any], frames: int, height: int, width: int) -> None:
    made, expected = rotary_tables(config, frames, height, width), reference(config, frames, height, width)
    tokens = -(-frames // (config.get("patch_size_t") or 1)) * (height // 2) * (width // 2)
    for table, wanted in zip(made, expected, strict=True):
        assert table.dtype == np.float32 and table.shape == (tokens, config["attention_head_dim"])
        assert table.flags.c_contiguous
        np.testing.assert_allclose(table, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(98, 170), (96, 172)])
def test_refuses_clips_past_the_last_position_of_a_1_5(height: int, width: int) -> None:
    with pytest.raises(BadInput, match=f"latents of {height}x{width} exceed this model's 96x170; use a smaller"):
        rotary_tables(ONE_FIVE, 2, height, width)


@pytest.mark.parametrize("field", ["attention_head_dim", "patch_size", "sample_height", "sample_width"])
def test_refuses_a_config_that_lacks_a_field(field: str) -> None:
    with pytest.raises(BundleError, match=f"has no {field}; export"):
        rotary_tables({k: v for k, v in FIVE_B.items() if k != field}, 3, 4, 4)


def test_refuses_heads_that_do_not_split() -> None:
    with pytest.raises(BundleError, match="attention_head_dim 40 is not a multiple of 16"):
        rotary_tables({**FIVE_B, "attention_head_dim": 40}, 3, 4, 4)
