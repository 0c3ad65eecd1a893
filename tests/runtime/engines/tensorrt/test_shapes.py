"""What a clip's size makes of a graph's symbols, at the sizes of the public checkpoints."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reelquant.runtime.bundle.manifest import Manifest
from reelquant.runtime.engines.tensorrt.shapes import Profile, dimension, profile
from reelquant.runtime.errors import BundleError
from reelquant.runtime.models.cogvideox.geometry import Geometry
from reelquant.runtime.sizes import Size
from tests.conftest import TinyBundleMaker

WHOLE, SMALL = Size(49, 480, 720), Size(9, 256, 256)
VAE = {"scaling_factor": 1.15258426, "sample_height": 480, "sample_width": 720}


@pytest.fixture
def manifest(tiny_bundle: TinyBundleMaker) -> Manifest:
    return replace(tiny_bundle("t2v").manifest, geometry=Geometry(), text_tokens=226, vae=VAE)


def test_the_transformer_at_its_trained_size(manifest: Manifest) -> None:
    found = profile(manifest, "transformer", WHOLE, tiled=False)
    assert found.is_static
    assert found.usual == {"batch": 1, "latent_frames": 13, "height": 60, "width": 90, "tokens": 17_776}


def test_1_5_sees_padded_latents(manifest: Manifest) -> None:
    wide = replace(manifest, geometry=Geometry(patch_t=2, max_frames=161))
    found = profile(wide, "transformer", Size(81, 768, 1360), tiled=False).usual
    assert (found["latent_frames"], found["tokens"]) == (22, 226 + 11 * 48 * 85)


def test_the_text_encoder_has_one_shape(manifest: Manifest) -> None:
    assert profile(manifest, "text_encoder", WHOLE, True) == profile(manifest, "text_encoder", SMALL, False)


def test_the_vae_whole_and_in_tiles(manifest: Manifest) -> None:
    whole = profile(manifest, "vae_decoder", WHOLE, tiled=False)
    assert whole == Profile.static({"height": 60, "width": 90})
    tiles = profile(manifest, "vae_decoder", WHOLE, tiled=True)
    # Tiles of 30×45 every 25×36 cells: those at the end are 10 high and 18 wide.
    assert (tiles.least, tiles.most) == ({"height": 10, "width": 18}, {"height": 30, "width": 45})
    encoder = profile(manifest, "vae_encoder", WHOLE, tiled=True)
    assert (encoder.least, encoder.most) == ({"height": 80, "width": 144}, {"height": 240, "width": 360})
    assert profile(manifest, "vae_decoder", Size(9, 240, 352), tiled=True).is_static  # one tile holds it


def test_a_dynamic_profile_spans_its_sizes(manifest: Manifest) -> None:
    found = profile(manifest, "transformer", WHOLE, False, SMALL)
    assert found.least["tokens"] == 226 + 3 * 16 * 16 and found.most["tokens"] == found.usual["tokens"] == 17_776
    assert Profile.from_json(found.as_json()) == found


@pytest.mark.parametrize(("text", "value"), [("height", 60), ("8*height", 480), ("height//4", 15)])
def test_dimensions(text: str, value: int) -> None:
    assert dimension(text, {"height": 60, "width": 90}) == value


@pytest.mark.parametrize("text", ["", "depth", "height**9", "2*", "height//"])
def test_other_dimensions_are_refused(text: str) -> None:
    with pytest.raises(BundleError, match="which none of height, width gives; export it again"):
        dimension(text, {"height": 60, "width": 90})
