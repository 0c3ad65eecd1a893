"""Dimensions of a graph at a size: sums and products of symbols, and nothing else."""

from __future__ import annotations

import pytest

from reelquant.runtime.symbolic import evaluate


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("latent_frames*((height//2))*((width//2)) + 226", 17_776),
        ("8*height", 480),
        ("-width % 7", 1),
        ("2**99", None),
        ("unknown + 1", None),
        ("__import__('os')", None),
        ("height//0", None),
        ("3.5", None),
        ("(", None),
    ],
)
def test_symbolic_sizes(text: str, value: int | None) -> None:
    assert evaluate(text, {"latent_frames": 13, "height": 60, "width": 90}) == value
