"""Latents that are kept are decoded to the very clip, and nothing else is taken for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from reelquant.runtime.errors import BadInput
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.request import Request
from reelquant.runtime.sampling.latents import SavedLatents
from tests.command_line import refused, run
from tests.conftest import TinyBundleMaker

Capture = pytest.CaptureFixture[str]


def test_a_kept_sampling_decodes_to_the_same_clip(tiny_bundle: TinyBundleMaker, tmp_path: Path) -> None:
    bundle = tiny_bundle("t2v")
    clip = Pipeline(bundle).generate(Request("a red circle", seed=3), keep=tmp_path / "kept.npz")
    saved = SavedLatents.load(tmp_path / "kept.npz")
    again = Pipeline(bundle).decode_saved(saved)
    assert again.sha256 == clip.sha256 and again.provenance == clip.provenance and again.fps == clip.fps


def test_the_commands(tiny_bundle: TinyBundleMaker, tmp_path: Path, capfd: Capture) -> None:
    bundle, kept = tiny_bundle("t2v").path, tmp_path / "kept.npz"
    made = run(capfd, "generate", bundle, "red", "-o", tmp_path / "a.npy", "--seed", 1, "--latents", kept)
    assert made.code == 0
    assert run(capfd, "decode", bundle, kept, "-o", tmp_path / "b.npy").code == 0
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    (tmp_path / "short.npz").write_bytes(kept.read_bytes()[:-30])
    for latents, message in [
        (tmp_path / "short.npz", "short.npz are damaged, or no file of reelquant generate --latents"),
        (tmp_path / "none.npz", "none.npz does not exist; check the name"),
    ]:
        assert message in refused(capfd, tmp_path, "decode", bundle, latents, "-o", tmp_path / "c.npy")
    said = refused(
        capfd, tmp_path, "generate", bundle, "red", "-o", tmp_path / "c.npy", "--latents", tmp_path / "x.mp4"
    )
    assert "x.mp4 does not end in one of .npz; rename it" in said


def test_latents_of_another_vae_or_shape(tiny_bundle: TinyBundleMaker) -> None:
    pipeline = Pipeline(tiny_bundle("t2v"))
    vae = pipeline.bundle.component_digest("vae_decoder")
    with pytest.raises(BadInput, match="are of another VAE than that of"):
        pipeline.decode_saved(SavedLatents(np.zeros((3, 4, 4, 4), np.float32), "0" * 64))
    for shape in [(2, 4, 4, 4), (3, 16, 4, 4)]:
        with pytest.raises(BadInput, match="are not what this VAE decodes"):
            pipeline.decode_saved(SavedLatents(np.zeros(shape, np.float32), vae))


@pytest.mark.parametrize("values", [np.full((3, 4, 4, 4), np.nan, np.float32), np.zeros((3, 4, 4), np.float32)])
def test_values_that_are_no_latents(values: NDArray[np.float32], tmp_path: Path) -> None:
    SavedLatents(values, "x").save(tmp_path / "x.npz")
    with pytest.raises(BadInput, match="are not finite float32"):
        SavedLatents.load(tmp_path / "x.npz")
