"""Token ids against transformers' T5Tokenizer (T5TokenizerFast is its other name), and the prompts that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tokenizers
from transformers import T5Tokenizer

from demo.architecture import TEXT_TOKENS, build_tokenizer
from demo.clips import held_out_scenes
from reelquant.runtime.errors import BadInput, BundleError
from reelquant.runtime.sampling.tokenizer import Tokenizer

CAPTIONS = [scene.caption for scene in held_out_scenes(8)]
ODD = ["a red, circle!", "Ｒed ①", "  two   spaces ", "a\nnew line", "7 x 2.5", "naïve ☃ 红色", "</s> red <pad>", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo's tokenizer.json."""
    made = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save(str(made / "tokenizer.json"))
    return made


def ids(reference: T5Tokenizer, prompt: str) -> list[int]:
    return list(reference(prompt, padding="max_length", max_length=TEXT_TOKENS, truncation=True).input_ids)


@pytest.mark.parametrize("prompt", CAPTIONS)
def test_captions_are_those_of_every_t5_tokenizer(folder: Path, prompt: str) -> None:
    made = Tokenizer.open(folder / "tokenizer.json", TEXT_TOKENS).encode(prompt)
    assert made.dtype == np.int64 and made.shape == (TEXT_TOKENS,)
    assert made.tolist() == ids(T5Tokenizer(tokenizer_object=build_tokenizer()), prompt)
    assert made.tolist() == ids(T5Tokenizer.from_pretrained(folder), prompt)
    assert 2 not in made  # <unk>


@pytest.mark.parametrize("rebuilt", [False, True])
@pytest.mark.parametrize("prompt", ODD)
def test_any_prompt_is_that_of_the_tokenizer_the_file_was_saved_from(
    folder: Path, tmp_path: Path, prompt: str, rebuilt: bool
) -> None:
    """transformers saves special tokens, truncation and padding into the file; only the first may count."""
    if rebuilt:
        reference = T5Tokenizer.from_pretrained(folder)
    else:
        reference = T5Tokenizer(tokenizer_object=build_tokenizer())
    expected = ids(reference, prompt)
    saved = tmp_path / "tokenizer.json"
    reference.backend_tokenizer.save(str(saved))
    assert '"max_length":24' in "".join(saved.read_text("utf-8").split())
    assert Tokenizer.open(saved, TEXT_TOKENS).encode(prompt, allow_empty=True).tolist() == expected


def test_stored_truncation_and_padding_are_not_used(tmp_path: Path) -> None:
    stored, path = build_tokenizer(), tmp_path / "tokenizer.json"
    stored.enable_padding(length=226)
    stored.save(str(path))
    assert Tokenizer.open(path, 4).encode("red").tolist() == [9, 1, 0, 0]
    stored.enable_truncation(4)
    stored.no_padding()
    stored.save(str(path))
    with pytest.raises(BadInput, match="6 tokens long"):
        Tokenizer.open(path, 4).encode("a a a a a")


def test_padding_is_the_files_own(tmp_path: Path) -> None:
    pieces = [("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), ("a", -1.0), ("<pad>", 0.0)]
    tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=1)).save(str(tmp_path / "t.json"))
    assert Tokenizer.open(tmp_path / "t.json", 4).encode("a").tolist() == [3, 4, 4, 4]


def test_an_empty_prompt_is_only_an_end_mark_where_allowed(folder: Path) -> None:
    tokenizer = Tokenizer.open(folder / "tokenizer.json", 5)
    assert tokenizer.encode("", allow_empty=True).tolist() == [1, 0, 0, 0, 0]
    for prompt in ("", "  \n\t"):
        with pytest.raises(BadInput, match="the prompt is empty; describe"):
            tokenizer.encode(prompt)


def test_a_long_prompt_is_refused_and_a_full_one_is_not(folder: Path) -> None:
    tokenizer = Tokenizer.open(folder / "tokenizer.json", TEXT_TOKENS)
    assert tokenizer.encode("a " * 22 + "a").tolist() == [3] * 23 + [1]
    with pytest.raises(BadInput, match="27 tokens long, its end mark included, and this model reads 24; shorten.* 3 "):
        tokenizer.encode("a " * 25 + "a")
    with pytest.raises(BadInput, match="shorten"):
        tokenizer.encode("a " * 25 + "a", allow_empty=True)


@pytest.mark.parametrize("text", [None, "", "{}", "not json"])
def test_a_file_that_is_no_tokenizer(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "tokenizer.json"
    if text is not None:
        path.write_text(text, "utf-8")
    with pytest.raises(BundleError, match="cannot read .*tokenizer.json"):
        Tokenizer.open(path, TEXT_TOKENS)


def test_a_tokenizer_without_padding(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.Unigram([("a", 0.0)], unk_id=0)).save(str(path))
    with pytest.raises(BundleError, match="has no <pad> token"):
        Tokenizer.open(path, TEXT_TOKENS)
