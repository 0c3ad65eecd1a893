"""What runs without data is counted as papers and real tensors count it."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn

from benchmarks.variants import VARIANTS
from reelquant.export.footprint import _run, transformer_footprint, vae_footprint
from reelquant.export.network import fake_mode


@pytest.mark.parametrize(
    ("name", "shape", "tokens", "tera"),
    [("cogvideox-2b", (13, 16, 60, 90), 17776, 120), ("cogvideox-5b", (13, 16, 60, 90), 17776, 332)],
)
def test_flops_of_a_forward_are_the_published_formula(
    name: str, shape: tuple[int, ...], tokens: int, tera: float
) -> None:
    """24·N·D²·L for linears and 4·N²·D·L for attention; embeddings and modulation are less than 0.1 % more."""
    config = VARIANTS[name].transformer
    width, layers = 64 * config["num_attention_heads"], config["num_layers"]
    found = transformer_footprint(config, 226, shape, batch=1)
    wanted = 24 * tokens * width**2 * layers + 4 * tokens**2 * width * layers
    assert found.flops == pytest.approx(wanted, rel=1e-3) and found.flops == pytest.approx(tera * 1e12, rel=5e-3)
    assert found.scores == 4 * config["num_attention_heads"] * tokens**2


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_counted(name: str) -> None:
    config = VARIANTS[name].reduced().transformer
    one, two = (transformer_footprint(config, 226, (4, 16, 8, 12), batch) for batch in (1, 2))
    assert two.flops == pytest.approx(2 * one.flops, rel=1e-2) and one.live < two.live <= 2.1 * one.live


class Chain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x + 1  # alive until z is made
        z = torch.cat([y, y])  # and with it: 3 times x
        del y
        return z.view(-1)[:1] * 2


def test_live_bytes_are_those_of_results_that_are_still_held() -> None:
    with fake_mode():
        _, live, _ = _run(Chain(), {"x": torch.empty(100, 100)})
    gc.collect()
    assert live == 3 * 100 * 100 * 4


def test_a_later_chunk_holds_its_caches_too() -> None:
    config = VARIANTS["cogvideox-2b"].reduced().vae
    small, large = (vae_footprint(config, "decoder", side, side) for side in (64, 128))
    assert large["next"].caches == 4 * small["next"].caches == 4 * small["first"].caches > 0
    assert large["next"].live == pytest.approx(4 * small["next"].live, rel=1e-2)
    assert small["first"].flops > small["next"].flops


def test_what_was_counted_is_not_counted_again() -> None:
    config = VARIANTS["cogvideox-2b"].reduced().transformer
    one, again = (transformer_footprint(dict(config), 226, (4, 16, 8, 12), 1) for _ in range(2))
    assert one is again and one is not transformer_footprint(config, 226, (4, 16, 8, 12), 2)
