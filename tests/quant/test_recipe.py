"""Recipes: the two that come along, what they decide, and what a recipe may not say."""

from __future__ import annotations

from pathlib import Path

import pytest

from reelquant.quant.formats import FP8_E4M3, INT8, PerChannel, PerTensor
from reelquant.quant.methods.method import PLAIN, Method
from reelquant.quant.numerics import HIGH, NUMERICS, Quantized
from reelquant.quant.recipe import Recipe, built_in_recipes
from reelquant.runtime.errors import BadInput
from tests.quant.tiny import SHAPES

KEPT = ["time_embedding.linear_1", "ofs_embedding.linear_2", "patch_embed.proj", "patch_embed.text_proj", "proj_out"]
KEPT += ["transformer_blocks.11.norm1.linear", "transformer_blocks.0.norm2.linear", "norm_out.linear"]
KEPT += ["transformer_blocks.0.attn1.norm_q", "transformer_blocks.0.norm1.norm", "some_node", ""]
CHANGED = [f"transformer_blocks.{i}.attn1.{name}" for i in (0, 7, 41) for name in ("to_q", "to_k", "to_v", "to_out.0")]
CHANGED += ["transformer_blocks.3.ff.net.0.proj", "transformer_blocks.29.ff.net.2"]

HEAD = 'name = "mine"\ndescription = "for a test"\n'


def parse(rules: str) -> Recipe:
    return Recipe.parse(f"{HEAD}rules = [{rules}]")


@pytest.mark.parametrize(
    ("name", "numerics"),
    [
        ("int8", Quantized(INT8, weights=PerChannel(axis=1))),
        ("fp8", Quantized(FP8_E4M3, weights=PerTensor())),
    ],
)
def test_built_in_recipes_quantize_attention_and_feed_forward_only(name: str, numerics: Quantized) -> None:
    recipe = Recipe.load(name)
    assert recipe.name == name and recipe.description
    assert {node: recipe.resolve(node) for node in CHANGED} == dict.fromkeys(CHANGED, numerics)
    modulation = [node for node in KEPT if node.endswith((".norm1.linear", ".norm2.linear"))]
    kept = dict.fromkeys(KEPT, HIGH) | (dict.fromkeys(modulation, NUMERICS["fp8_weight"]) if name == "fp8" else {})
    assert {node: recipe.resolve(node) for node in KEPT} == kept
    assert recipe.resolve("transformer_blocks.7.attn1") == (numerics if name == "fp8" else HIGH)
    recipe.check(SHAPES, SHAPES, ["transformer_blocks.0.attn1"])


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_the_ends_of_the_network_can_stay_high(name: str) -> None:
    whole, recipe = Recipe.load(name), Recipe.load(f"{name}-ends-high")
    assert recipe.rules[: len(whole.rules)] == whole.rules and recipe.digest != whole.digest
    found = recipe.for_blocks(CHANGED)
    ends = ("transformer_blocks.0.", "transformer_blocks.41.")
    for node in CHANGED:
        assert found.resolve(node) == (HIGH if node.startswith(ends) else whole.resolve(node))
    assert found.resolve("transformer_blocks.41.attn1") == HIGH


def test_a_recipe_may_change_the_method_alone() -> None:
    plain, parent = Recipe.parse(f'{HEAD}extends = "int8"\nmethod = {{}}'), Recipe.load("int8")
    assert plain.rules == parent.rules and plain.method == PLAIN != parent.method
    assert Recipe.load("fp8-minmax").rules == Recipe.load("fp8").rules


def test_a_recipe_extends_one_that_there_is() -> None:
    with pytest.raises(BadInput, match="unknown recipe 'int7'"):
        Recipe.parse(f'{HEAD}extends = "int7"\nrules = [{{match="a", numerics="high"}}]')
    with pytest.raises(BadInput, match="unknown key 'extends'"):
        Recipe.parse(f'{HEAD}extends = 8\nrules = [{{match="a", numerics="high"}}]')
    with pytest.raises(BadInput, match="names int8 beside fp8, which no engine holds together"):
        Recipe.parse(f'{HEAD}extends = "int8"\nrules = [{{match="a", numerics="fp8"}}]')


def test_the_last_block_has_a_name() -> None:
    recipe = parse(
        '{match="transformer_blocks.*", numerics="int8"}, {match="transformer_blocks.{last}.*", numerics="high"}'
    )
    blocks = [f"transformer_blocks.{i}.ff.net.2" for i in (0, 9, 29)]
    found = recipe.for_blocks([*blocks, "proj_out"])
    assert [found.resolve(name) for name in blocks] == [NUMERICS["int8"], NUMERICS["int8"], HIGH]


def test_the_last_match_wins_and_no_match_is_high() -> None:
    recipe = parse('{match="a.*", numerics="int8"}, {match="a.b.*", numerics="high"}, {match="a.b.c", numerics="int8"}')
    found = {node: recipe.resolve(node) for node in ("a.x", "a.b.x", "a.b.c", "A.x", "b.a.x")}
    assert found == {"a.x": NUMERICS["int8"], "a.b.x": HIGH, "a.b.c": NUMERICS["int8"], "A.x": HIGH, "b.a.x": HIGH}


def test_the_digest_is_of_what_a_recipe_does() -> None:
    one = Recipe.parse('name="x"\ndescription="x"\nrules=[{match="a", numerics="int8"}, {match="b", numerics="high"}]')
    other_words = Recipe.parse(
        'name="y"\ndescription="y"\n[[rules]]\nmatch="a"\nnumerics="int8"\n[[rules]]\nmatch="b"\nnumerics="high"'
    )
    assert one.digest == other_words.digest and len(one.digest) == 64
    variants = ['{match="b", numerics="high"}, {match="a", numerics="int8"}', '{match="a", numerics="int8"}']
    variants += ['{match="a", numerics="fp8"}, {match="b", numerics="high"}']
    assert len({one.digest, *(parse(rules).digest for rules in variants)}) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "not valid TOML"),
        (HEAD, "rules is missing"),
        (f"{HEAD}rules = []", "rules is empty"),
        (f"{HEAD}rules = 3", "rules must be a list"),
        (f"{HEAD}rules = [3]", "rule 1 is not a table"),
        (f'{HEAD}alpha = 0.5\nrules = [{{match="*", numerics="int8"}}]', "unknown key 'alpha'"),
        (f'{HEAD}rules = [{{match="*", numerics="int8", bits=4}}]', "rule 1: unknown key 'bits'"),
        (f'{HEAD}rules = [{{match="*", numerics="high"}}, {{match="*"}}]', "rule 2: numerics is missing"),
        (
            f'{HEAD}rules = [{{match="*", numerics="int4"}}]',
            "unknown numerics 'int4'; one of high, int8, int8_reduced, fp8",
        ),
        (f'{HEAD}rules = [{{match="", numerics="int8"}}]', "match must be a non-empty text"),
        (f'{HEAD}rules = [{{match="*", numerics=8}}]', "numerics must be a non-empty text"),
        ('name = ""\ndescription = "x"\nrules = [{match="*", numerics="int8"}]', "name must be a non-empty text"),
        (f'{HEAD}rules = [{{match="a", numerics="int8"}}, {{match="b", numerics="fp8"}}]', "names int8 beside fp8"),
    ],
)
def test_a_broken_recipe_is_refused_by_file_and_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match="mine.toml") as refusal:
        Recipe.load(path)
    assert message in str(refusal.value)


def test_a_recipe_is_loaded_by_name_or_path_only(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'{HEAD}rules = [{{match="*", numerics="int8"}}]', encoding="utf-8")
    assert Recipe.load(path) == Recipe.load(str(path))
    with pytest.raises(
        BadInput,
        match="unknown recipe 'int7'; one of fp8, fp8-ends-high, fp8-minmax, int4-weight, int8, int8-ends-high, int8-minmax, int8-reduced, int8-weight, mxfp8, nvfp4, or the path of a .toml file",
    ):
        Recipe.load("int7")
    with pytest.raises(BadInput, match="unknown recipe"):
        Recipe.load("../recipes/int8")
    with pytest.raises(BadInput, match="cannot read the recipe .*none.toml"):
        Recipe.load(tmp_path / "none.toml")
    path.write_bytes(b'name = "\xff"')
    with pytest.raises(BadInput, match="cannot read the recipe .*mine.toml"):
        Recipe.load(path)


@pytest.mark.parametrize(
    ("rules", "pattern"),
    [
        ('{match="transformer_block.*", numerics="int8"}', "'transformer_block.\\*' matches no linear"),
        ('{match="*", numerics="int8"}, {match="proj_uot", numerics="high"}', "'proj_uot' matches no node"),
        ('{match="node_Add_1", numerics="int8"}', "'node_Add_1' matches no linear"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error_that_names_it(rules: str, pattern: str) -> None:
    with pytest.raises(BadInput, match=pattern):
        parse(rules).check([*SHAPES, "node_Add_1"], SHAPES)


def test_a_high_rule_may_be_about_any_node() -> None:
    parse('{match="node_Add_1", numerics="high"}').check([*SHAPES, "node_Add_1"], SHAPES)


@pytest.mark.parametrize("name", built_in_recipes())
def test_a_recipe_is_written_as_it_is_read(name: str) -> None:
    recipe = Recipe.load(name)
    again = Recipe.parse(recipe.to_toml())
    assert again == recipe and again.digest == recipe.digest


def test_a_method_is_inherited_or_replaced() -> None:
    rules = 'rules = [{match="*", numerics="high"}]'
    inherited = Recipe.parse(f'{HEAD}extends = "int8"\n{rules}')
    assert inherited.method == Recipe.load("int8").method == Method(0.8, True, "gptq", "minmax")
    assert Recipe.parse(f'{HEAD}extends = "int8"\nmethod = {{}}\n{rules}').method == PLAIN == Method()
    assert Recipe.parse(f"{HEAD}{rules}").method == PLAIN


def test_a_rule_has_a_strength_of_its_own() -> None:
    text = '{match="a.*", numerics="int8"}, {match="a.b", numerics="int8", strength=0.25, why="because"}'
    recipe = Recipe.parse(f"{HEAD}method = {{strength = 0.8, shift = true}}\nrules = [{text}]")
    assert recipe.method_of("a.c") == Method(0.8, True) and recipe.method_of("a.b") == Method(0.25, True)
    rule = recipe.rule_of("a.b")
    assert rule is not None and rule.why == "because" and recipe.rule_of("c") is None
    assert Recipe.parse(recipe.to_toml()) == recipe
    other = Recipe.parse(f"{HEAD}method = {{strength = 0.8, shift = true}}\nrules = [{text.replace('because', 'so')}]")
    assert other.digest == recipe.digest
    assert Recipe.parse(recipe.to_toml().replace("0.25", "0.5")).digest != recipe.digest


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("8", "method is not a table with keys of strength, shift, rounding, observer"),
        ("{alpha = 0.5}", "unknown key 'alpha' in method; the keys are strength, shift, rounding, observer"),
        ("{strength = 1.5}", "strength must be a number from 0 to 1"),
        ("{strength = true}", "strength must be a number from 0 to 1"),
        ("{shift = 1}", "shift must be true or false"),
        ('{rounding = "up"}', "unknown rounding 'up'; one of nearest, gptq"),
        ('{observer = "max"}', "unknown observer 'max'; one of minmax, percentile, mse"),
    ],
)
def test_what_is_no_method(method: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Recipe.parse(f'{HEAD}method = {method}\nrules = [{{match="*", numerics="high"}}]')


def test_a_rule_may_not_say_more() -> None:
    with pytest.raises(BadInput, match="rule 1: strength must be a number from 0 to 1"):
        parse('{match="*", numerics="int8", strength="strong"}')
    with pytest.raises(BadInput, match="rule 1: why must be a text"):
        parse('{match="*", numerics="int8", why=3}')


def test_int8_stands_beside_int4() -> None:
    assert parse('{match="a", numerics="int8"}, {match="b", numerics="int4_weight"}').formats == {"int8", "int4"}
