"""Prompts as users write them: what the tokenizer would misread is refused or named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers.normalizers import NFKC

from demo.architecture import build_tokenizer
from reelquant.runtime import Request, load_pipeline
from reelquant.runtime.errors import BadInput
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.sampling.tokenizer import Tokenizer
from tests.command_line import refused, run
from tests.conftest import TinyBundleMaker

Capture = pytest.CaptureFixture[str]
PROMPT = "a red circle moves right on a white background"


@pytest.fixture
def t2v(tiny_bundle: TinyBundleMaker) -> Pipeline:
    return load_pipeline(tiny_bundle("t2v").path)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a red circle \udcff moves left", "the prompt is not UTF-8 at character 14"),
        ("\ud83d alone", "the prompt is not UTF-8 at character 1"),
        ("\u200b", "the prompt is empty"),
        ("\u2800 \ufe0f\u00ad", "the prompt is empty"),
        ("一只猫在跑", "can read nothing of the prompt"),
        ("猫 狗", r"can read nothing of the prompt \(猫, 狗\)"),
    ],
)
def test_prompts_that_cannot_be_read(prompt: str, said: str, t2v: Pipeline) -> None:
    with pytest.raises(BadInput, match=said):
        t2v.resolve(Request(prompt))
    if "nothing" not in said and "empty" not in said:
        with pytest.raises(BadInput, match=said.replace("prompt", "negative prompt")):
            t2v.resolve(Request(PROMPT, negative_prompt=prompt))


def test_a_mark_that_is_only_in_the_vocabulary(t2v: Pipeline) -> None:
    """T5's rules also make one of what only looks like it: what counts is the id that the encoder gets."""
    for mark in ("</s>", "<pad>"):
        with pytest.raises(BadInput, match=f"the prompt holds {mark}, a mark"):
            t2v.resolve(Request(f"a red {mark} circle"))


def test_a_mark_in_other_characters(tmp_path: Path) -> None:
    rules = build_tokenizer()
    rules.normalizer = NFKC()  # a part of what T5's own does
    rules.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(BadInput, match="the prompt holds ＜/s＞, a mark"):
        Tokenizer.open(tmp_path / "tokenizer.json", 24).check("a red ＜/s＞ circle")


@pytest.mark.parametrize("mark", ["</s>", "<pad>", "<extra_id_0>"])
def test_a_mark_of_the_tokenizers_own_would_end_the_prompt(mark: str, tmp_path: Path) -> None:
    """As transformers saves a T5 tokenizer, with its marks."""
    rules = build_tokenizer()
    rules.add_special_tokens(["<pad>", "</s>", "<unk>", "<extra_id_0>"])
    rules.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.open(tmp_path / "tokenizer.json", 24)
    assert tokenizer.check(PROMPT) == ()
    for allow_empty in (False, True):
        with pytest.raises(BadInput, match=f"the prompt holds {mark}, a mark of the tokenizer's own; leave it out"):
            tokenizer.check(f"a red {mark}circle", allow_empty=allow_empty)


def test_words_that_the_model_does_not_know_are_named(
    tiny_bundle: TinyBundleMaker, tmp_path: Path, capfd: Capture
) -> None:
    bundle, out = tiny_bundle("t2v").path, tmp_path / "a.npy"
    said = run(capfd, "generate", bundle, "a red 猫 circle 狗 moves left", "-o", out, "--seed", "1")
    assert "the model does not know 猫, 狗: it reads all such words alike" in said.err
    as_json = run(capfd, "generate", bundle, "a red 猫 circle", "-o", out, "--seed", "1", "--json")
    assert json.loads(as_json.out)["unknown_words"] == ["猫"] and "know" not in as_json.err
    against = run(capfd, "generate", bundle, PROMPT, "--negative-prompt", "狗", "-o", out, "--seed", "1", "--json")
    assert json.loads(against.out)["unknown_words"] == ["狗"]
    known = run(capfd, "generate", bundle, PROMPT, "-o", out, "--seed", "1")
    assert "know" not in known.err
    embedded = run(capfd, "embed", bundle, tmp_path / "kept", "a red 猫", "--json")
    assert json.loads(embedded.out)["unknown_words"] == {"a red 猫": ["猫"]}
    for command in (("generate", bundle, "red \udcff", "-o", out), ("embed", bundle, tmp_path / "kept", "red \udcff")):
        assert "the prompt is not UTF-8 at character 5" in refused(capfd, tmp_path, *command)


def test_a_file_of_prompts_may_begin_with_windows_mark(
    tiny_bundle: TinyBundleMaker, tmp_path: Path, capfd: Capture
) -> None:
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\r\n", encoding="utf-8-sig")
    ran = run(capfd, "embed", tiny_bundle("t2v").path, tmp_path / "kept", "--file", tmp_path / "prompts.txt", "--json")
    assert json.loads(ran.out)["unknown_words"] == {}
