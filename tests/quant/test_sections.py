"""A recipe's sections: what they may say, and what becomes of a bundle."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reelquant.export.road import ExportPlan, export_checkpoint
from reelquant.quant import decoder_bundle
from reelquant.quant.calibration.calibrate import calibrate
from reelquant.quant.calibration.data import CalibrationData
from reelquant.quant.calibration.plan import CalibrationPlan
from reelquant.quant.calibration.ranges import Ranges
from reelquant.quant.graph.graph_files import load_graph
from reelquant.quant.quantize import quantize_bundle
from reelquant.quant.recipe import Recipe
from reelquant.quant.sections import Section
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.session import BF16_KEY
from reelquant.runtime.errors import AccuracyError, BadInput
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.request import Request
from tests.conftest import BUILD, CHECKPOINTS, BundleMaker

ONE_LAYER = 'name="x"\ndescription="x"\nrules=[{match="transformer_blocks.0.ff.*", numerics="int8"}]\n'
HEAD = 'name="x"\ndescription="x"\nrules=[{match="*", numerics="high"}]\n'


def test_sections_are_inherited_said_anew_and_written() -> None:
    recipe = Recipe.parse(
        'name="x"\ndescription="x"\nextends="int8"\nrotate=true\ntext_encoder={numerics="bf16_weight"}'
    )
    assert (
        recipe.section("vae_decoder") == Section("int8", "faster", bf16=True)
        and recipe.section("vae_encoder") == Section()
    )
    assert recipe.bf16_attention and not Recipe.load("int8-minmax").bf16_attention
    assert recipe.rotate and recipe.text_storage == "bf16" and Recipe.load("int8").text_storage == "fp32"
    again = Recipe.parse(recipe.to_toml())
    assert again == replace(recipe, rules=again.rules) and again.digest == recipe.digest
    other = Recipe.parse('name="x"\ndescription="x"\nextends="int8"\nvae_decoder={numerics="high"}')
    assert other.section("vae_decoder") == Section() and other.digest != Recipe.load("int8").digest


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ('rotate = "yes"', "rotate must be true or false"),
        ('vae_decoder = "int8"', "vae_decoder must be a table with numerics, when, bf16"),
        ('vae_decoder = { numerics = "fp8" }', "vae_decoder cannot be 'fp8'; one of high, int8"),
        ('vae_decoder = { numerics = "int8", when = "slower" }', "unknown when 'slower' of vae_decoder; one of always, faster"),
        ('bf16_attention = "yes"', "bf16_attention must be true or false"),
        ('vae_decoder = { numerics = "int8", bf16 = 1 }', "bf16 of vae_decoder must be true or false"),
        ('vae_decoder = { numerics = "high", bf16 = true }', 'bf16 of vae_decoder stands beside numerics = "int8"'),
        ('vae_encoder = { numerics = "int8" }', "vae_encoder cannot be 'int8'; one of high"),
        ('text_encoder = { numerics = "int8" }', "text_encoder cannot be 'int8'; one of high, bf16_weight, int8_weight"),
        ('text_encoder = { numerics = "high", when = "faster" }', "text_encoder must be a table with numerics"),
        ("text_encoder = { }", "text_encoder must be a table with numerics"),
    ],
)  # fmt: skip
def test_what_a_section_may_not_say(said: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        Recipe.parse(HEAD + said)


def test_a_decoder_in_any_case_is_beside_fp32_alone() -> None:
    always = Recipe.parse(HEAD + 'vae_decoder = { numerics = "int8" }')
    always.check_base("fp32")
    with pytest.raises(BadInput, match="'x' puts the VAE's decoder in int8, beside fp32 alone; use --base fp32, or"):
        always.check_base("bf16")
    Recipe.load("int8").check_base("bf16")


def test_int8_has_the_decoder_where_its_engine_gains(demo_bundle: BundleMaker, rtx_bundle: BundleMaker) -> None:
    bundle = demo_bundle("t2v", "int8")
    part = bundle.manifest.components["vae_decoder"]
    assert list(part.formats) == ["int8"] and part.stats["next"]["weight_bytes_by_dtype"]["INT8"] > 0
    assert part.passes["next"]["quantize_convolutions"]["psnr"] > 40
    assert not demo_bundle("t2v", "fp8").manifest.components["vae_decoder"].formats
    assert not rtx_bundle("t2v", "int8").manifest.components["vae_decoder"].formats


@pytest.fixture(scope="module")
def fp32(demo_bundle: BundleMaker) -> Bundle:
    return demo_bundle("t2v", "fp32")


@pytest.fixture(scope="module")
def ranges(fp32: Bundle) -> Ranges:
    return calibrate(fp32, CalibrationData.load("demo"), CalibrationPlan(prompts=2, steps=1))


def test_a_text_encoder_is_stored_as_its_section_says(fp32: Bundle, ranges: Ranges, tmp_path: Path) -> None:
    recipe = Recipe.parse(f'{ONE_LAYER}text_encoder = {{ numerics = "int8_weight" }}')
    made = quantize_bundle(fp32, ranges, recipe, tmp_path / "out")
    part = made.manifest.components["text_encoder"]
    assert "int8_weight" in part.formats and part.compute == "fp32"
    assert part.passes["main"]["store_weights"]["storage"] == "int8"
    assert part.passes["main"]["store_weights"]["linears"] > 0
    assert fp32.component_digest("text_encoder") != made.component_digest("text_encoder")
    clips = [
        Pipeline(each, EngineOptions("openvino")).sample(Request("a circle", seed=1, steps=2)) for each in (fp32, made)
    ]
    assert np.isfinite(clips[1]).all() and (clips[0] != clips[1]).any()


def test_a_decoder_that_loses_too_much(
    fp32: Bundle, ranges: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is for speed alone it stays as it was; where it is wanted in any case nothing is written."""
    monkeypatch.setattr(decoder_bundle, "LEAST_PSNR", 90.0)
    text = ONE_LAYER + 'vae_decoder={numerics="int8"'
    made = quantize_bundle(fp32, ranges, Recipe.parse(text + ', when="faster"}'), tmp_path / "kept", engine="openvino")
    assert made.component_digest("vae_decoder") == fp32.component_digest("vae_decoder")
    assert not made.manifest.components["vae_decoder"].formats and made.verify() == len(made.manifest.files)
    assert made.manifest.components["vae_decoder"] == fp32.manifest.components["vae_decoder"]
    with pytest.raises(AccuracyError, match="INT8 convolutions take the frames of .* and 90 dB is the limit"):
        quantize_bundle(fp32, ranges, Recipe.parse(text + "}"), tmp_path / "refused", engine="openvino")
    assert not (tmp_path / "refused").exists()


def test_a_decoder_that_loses_too_much_in_int8_computes_in_bf16(
    fp32: Bundle, ranges: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the recipe asks for speed alone, and for bf16 too: INT8's frames are 46 to 53 dB away, bf16's 62, or none at all
    on a CPU without units for it.
    """
    monkeypatch.setattr(decoder_bundle, "LEAST_PSNR", 57.0)
    recipe = Recipe.parse(ONE_LAYER + 'vae_decoder={numerics="int8", when="faster", bf16=true}')
    made = quantize_bundle(fp32, ranges, recipe, tmp_path / "made", engine="openvino")
    part = made.manifest.components["vae_decoder"]
    assert not part.formats and made.verify() == len(made.manifest.files)
    for graph, facts in part.passes.items():
        assert facts["bf16"] == "all" and facts["bf16_trial"]["psnr"] >= 57 and "quantize_convolutions" not in facts
        assert load_graph(made.graph("vae_decoder", graph)).metadata_props[BF16_KEY] == "all"


def test_a_rotated_export_is_the_same_clip(demo_bundle: BundleMaker, tmp_path: Path) -> None:
    """The product of two rotated matrices is the product of the two; all that is quantized here is one small layer."""
    text = 'name="x"\ndescription="x"\nrotate=true\nrules=[{match="transformer_blocks.5.ff.net.2", numerics="int8_weight"}]'
    (tmp_path / "x.toml").write_text(text, "utf-8")
    fp32 = demo_bundle("t2v", "fp32")
    shutil.copytree(BUILD / "work-t2v" / "fp32", tmp_path / "work" / "fp32")  # not traced again
    plan = ExportPlan(
        str(tmp_path / "x.toml"), data="demo", calibration=CalibrationPlan(prompts=1, steps=1), gate=False
    )
    made = export_checkpoint(str(CHECKPOINTS / "t2v"), tmp_path / "out", plan, tmp_path / "work")
    part = made.manifest.components["transformer"]
    assert part.passes["main"]["rotate"]["attentions"] == 6 and list(part.formats) == ["int8_weight"]
    request = Request("a red circle", seed=1, steps=2)
    wanted, found = (Pipeline(each, EngineOptions("openvino")).sample(request) for each in (fp32, made))
    assert 1e-7 < np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 5e-3
