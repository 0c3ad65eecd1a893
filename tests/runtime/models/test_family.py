"""CogVideoX as the runtime sees it, by the published variants' configs; and that nothing else reads them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.variants import VARIANTS
from reelquant.runtime.errors import BadInput, BundleError
from reelquant.runtime.models import model_of
from reelquant.runtime.models.cogvideox.family import CogVideoX
from reelquant.runtime.models.cogvideox.schedulers import DDIM, DPM
from reelquant.runtime.sizes import Size
from tests.conftest import ROOT, TinyBundleMaker


def model(name: str) -> CogVideoX:
    variant = VARIANTS[name]
    return CogVideoX.of_configs(variant.transformer, variant.vae, variant.scheduler)


@pytest.mark.parametrize(
    ("name", "trained", "fps", "heads", "scheduler"),
    [
        ("cogvideox-2b", Size(49, 480, 720), 8, 30, DDIM),
        ("cogvideox-5b", Size(49, 480, 720), 8, 48, DPM),
        ("cogvideox-5b-i2v", Size(49, 480, 720), 8, 48, DPM),
        ("cogvideox1.5-5b", Size(81, 768, 1360), 16, 48, DPM),
        ("cogvideox1.5-5b-i2v", Size(81, 768, 1360), 16, 48, DPM),
    ],
)
def test_the_published_variants(name: str, trained: Size, fps: int, heads: int, scheduler: type) -> None:
    found = model(name)
    assert (found.trained_size, found.fps, found.heads, found.head_dim) == (trained, fps, heads, 64)
    assert isinstance(found.scheduler(), scheduler)
    assert isinstance(found.scheduler("ddim"), DDIM) and isinstance(found.scheduler("dpm"), DPM)
    assert found.text_tokens == 226 and found.text_width == 4096
    assert found.decodes((13, 16, 60, 90)) and not found.decodes((12, 16, 60, 90)) and not found.decodes((13, 4, 9, 9))


def test_sizes_are_those_that_it_has_positions_for() -> None:
    learned = model("cogvideox-5b-i2v")
    assert learned.has_learned_positions and learned.checked(Size(9, 480, 720)) == Size(9, 480, 720)
    with pytest.raises(BadInput, match="learned positions for latents of 60x90 alone"):
        learned.checked(Size(49, 464, 720))
    assert {(size.height, size.width) for size in learned.smaller(Size(49, 480, 720))} == {(480, 720)}
    assert not model("cogvideox-2b").has_learned_positions
    assert len({(size.height, size.width) for size in model("cogvideox-2b").smaller(Size(49, 480, 720))}) > 5


def test_an_image_of_the_later_i2v_is_scaled_the_other_way() -> None:
    one, later = model("cogvideox-5b-i2v"), model("cogvideox1.5-5b-i2v")
    assert one.image_scale == one.scale == 0.7 and later.image_scale == 1 / later.scale


def test_guidance_is_a_number_or_moves_with_the_timestep() -> None:
    found = model("cogvideox-5b")
    assert found.guidance(6.0, False, 50)(900) == 6.0
    assert found.guidance(6.0, True, 50)(10) != found.guidance(6.0, True, 50)(40)


def test_another_family_is_refused(tiny_bundle: TinyBundleMaker) -> None:
    manifest = tiny_bundle("t2v").manifest
    assert manifest.family == "cogvideox"
    with pytest.raises(BundleError, match="of the family 'wan', and this version knows cogvideox"):
        model_of(replace(manifest, family="wan"))


# What stands in a CogVideoX checkpoint's configs, or is arithmetic of this family alone.
FACTS = re.compile(
    r"""["'](patch_size|patch_size_t|sample_(height|width|frames)|num_attention_heads|attention_head_dim|text_embed_dim|"""
    r"""max_text_seq_length|ofs_embed_dim|use_(rotary|learned)_\w+|scaling_factor|invert_scale_latents|"""
    r"""temporal_compression_ratio|latent_channels|snr_shift_scale|prediction_type)["']|\bpatch_t\b"""
)


def facts(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text("utf-8").splitlines() if FACTS.search(line)]


@pytest.mark.parametrize("folder", ["runtime", "quant"])
def test_nothing_else_reads_a_checkpoints_configs(folder: str) -> None:
    own = ROOT / "runtime" / "models" / "cogvideox"
    files = [file for file in (ROOT / folder).rglob("*.py") if own not in file.parents]
    assert len(files) > 30 and {str(file): facts(file) for file in files if facts(file)} == {}
    assert any(facts(file) for file in own.glob("*.py"))  # the pattern finds what it looks for
