"""A clip that shows nothing, or nothing that moves, is never reported as a success."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from reelquant.runtime.media.flaws import flaws
from reelquant.runtime.media.stream import ClipStream
from reelquant.runtime.media.video import Clip
from reelquant.runtime.monitor import Monitor
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.sampling.latents import SavedLatents
from tests.command_line import run
from tests.conftest import TinyBundleMaker

RNG = np.random.default_rng(0)
SCENE = RNG.integers(0, 256, (1, 8, 12, 3), np.uint8)


@pytest.mark.parametrize(
    ("frames", "found"),
    [
        (RNG.integers(0, 256, (9, 8, 12, 3), np.uint8), ()),
        (np.zeros((9, 8, 12, 3), np.uint8), ("black",)),
        (RNG.integers(0, 17, (9, 8, 12, 3), np.uint8), ("black",)),
        (np.full((9, 8, 12, 3), 128, np.uint8) + RNG.integers(0, 3, (9, 8, 12, 3), np.uint8), ("blank",)),
        (np.repeat(SCENE, 9, 0), ("frozen",)),
        (np.clip(np.repeat(SCENE, 9, 0).astype(int) + RNG.integers(0, 2, (9, 8, 12, 3)), 0, 255).astype(np.uint8), ("frozen",)),
        (SCENE, ()),
        (np.concatenate([np.repeat(SCENE, 8, 0), 255 - SCENE]), ()),
    ],
)  # fmt: skip
def test_flaws(frames: NDArray[np.uint8], found: tuple[str, ...]) -> None:
    assert flaws(frames) == found == Clip(frames, 8).flaws


@pytest.mark.parametrize("flaw", ["black", "frozen", None])
def test_the_command_ends_with_1_and_the_clip_is_there(
    flaw: str | None,
    tiny_bundle: TinyBundleMaker,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = Pipeline._decoded

    def decoded(self: Pipeline, saved: SavedLatents, monitor: Monitor) -> ClipStream:
        stream = real(self, saved, monitor)
        size = stream.size
        moving = RNG.integers(0, 256, (size.frames, size.height, size.width, 3), np.uint8)
        made = {"black": np.zeros_like(moving), "frozen": np.repeat(moving[:1], len(moving), 0)}
        return replace(stream, chunks=iter(np.array_split(made.get(flaw or "", moving), 3)))

    monkeypatch.setattr(Pipeline, "_decoded", decoded)
    command = (
        "generate",
        tiny_bundle("t2v").path,
        "a circle",
        "-o",
        tmp_path / "clip.npy",
        "--steps",
        "1",
        "--seed",
        "1",
    )
    ran = run(capfd, *command, "--json")
    assert (tmp_path / "clip.npy").exists()
    assert ran.code == (1 if flaw else 0) and json.loads(ran.out)["flaws"] == ([flaw] if flaw else [])
    assert (f"clip.npy is {flaw}: the file was written, but generation probably failed" in ran.err) == bool(flaw)
