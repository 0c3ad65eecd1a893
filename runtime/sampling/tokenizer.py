"""A prompt to the text encoder's token ids."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

from reelquant.runtime.errors import BadInput, BundleError

# What Python makes of bytes that are not UTF-8, and halves of characters that stand alone.
_BROKEN = re.compile("[\ud800-\udfff]")
# Of categories that are seen, and yet blank: Braille's and Hangul's.
_FILLERS = "\u2800\u3164\u115f\u1160\uffa0"


class Tokenizer:
    """A bundle's ``tokenizer.json``; truncation or padding stored in the file is not used."""

    def __init__(self, rules: tokenizers.Tokenizer, text_tokens: int, pad: int) -> None:
        self._rules, self.text_tokens, self.pad = rules, text_tokens, pad
        self._marks = _marks(rules)
        rules.no_truncation()
        rules.no_padding()

    @classmethod
    def open(cls, path: Path, text_tokens: int) -> Tokenizer:
        """Load ``path`` for a transformer that takes ``text_tokens`` tokens of text.

        Raises:
            BundleError: the file is missing, is not a tokenizer, or has no ``<pad>``.
        """
        try:
            rules = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises no narrower type
            raise BundleError(f"cannot read {path}: {error}; export the checkpoint again") from error
        return cls.of(rules, text_tokens, str(path))

    @classmethod
    def of(cls, rules: tokenizers.Tokenizer, text_tokens: int, name: str) -> Tokenizer:
        """Use ``rules``, which errors call ``name``.

        Raises:
            BundleError: they have no ``<pad>``.
        """
        pad = rules.token_to_id("<pad>")
        if pad is None:
            raise BundleError(f"{name} has no <pad> token, so it is not T5's; export the checkpoint again")
        return cls(rules, text_tokens, pad)

    def check(self, prompt: str, *, allow_empty: bool = False, name: str = "the prompt") -> tuple[str, ...]:
        """See that the model can read ``prompt``, and return what it cannot read of it, in order. Errors call
        it ``name``.

        Raises:
            BadInput: as :meth:`encode`, it holds a mark of the tokenizer's own (``</s>``), or, where it must not be
                empty, the model can read nothing of it.
        """
        self.encode(prompt, allow_empty=allow_empty, name=name)
        if mark := self._mark(prompt):
            raise BadInput(f"{name} holds {mark}, a mark of the tokenizer's own; leave it out")
        unknown = self.unknown_words(prompt)
        if not allow_empty and not self._reads_any(prompt):
            raise BadInput(
                f"this model can read nothing of the prompt ({', '.join(unknown)}): its tokenizer knows no word of it; "
                "describe the clip in words that it knows, usually English"
            )
        return unknown

    def unknown_words(self, prompt: str) -> tuple[str, ...]:
        """The words of ``prompt`` that hold something the tokenizer does not know: to the model all of them are the same."""
        unknown = self._rules.token_to_id("<unk>")
        found = self._rules.encode(prompt)
        at = [span for id, span in zip(found.ids, found.offsets, strict=True) if id == unknown]
        words = (word for word in re.finditer(r"\S+", prompt))
        held = (word.group() for word in words if any(a < word.end() and word.start() < b for a, b in at))
        return tuple(dict.fromkeys(held))

    def _mark(self, prompt: str) -> str:
        """The first thing in ``prompt`` that the encoder would take for a mark, however it is written; "" where none is."""
        found = self._rules.encode(prompt, add_special_tokens=False)
        spans = (prompt[a:b] for id, (a, b) in zip(found.ids, found.offsets, strict=True) if id in self._marks)
        return next(spans, "")

    def _reads_any(self, prompt: str) -> bool:
        marks = {self._rules.token_to_id(name) for name in ("<unk>", "</s>", "<pad>")}
        found = self._rules.encode(prompt)
        return any(token.strip("▁") and id not in marks for id, token in zip(found.ids, found.tokens, strict=True))

    def encode(self, prompt: str, *, allow_empty: bool = False, name: str = "the prompt") -> NDArray[np.int64]:
        """Return int64 [text_tokens]: the prompt's ids, the end mark's, and padding.

        Raises:
            BadInput: the prompt is blank and ``allow_empty`` is false, is not Unicode text, or has too many tokens.
        """
        if not isinstance(prompt, str):
            raise BadInput(f"{name} is a {type(prompt).__name__}, not a str")
        if (broken := _BROKEN.search(prompt)) is not None:
            raise BadInput(
                f"{name} is not UTF-8 at character {broken.start() + 1}; type it again, or convert the file it is from"
            )
        if not allow_empty and all(character.isspace() or _is_invisible(character) for character in prompt):
            raise BadInput("the prompt is empty; describe the clip in a sentence or two")
        ids = self._rules.encode(prompt).ids
        if len(ids) > self.text_tokens:
            raise BadInput(
                f"{name} is {len(ids)} tokens long, its end mark included, and this model reads {self.text_tokens}; "
                f"shorten it by {len(ids) - self.text_tokens} or more"
            )
        padded = np.full(self.text_tokens, self.pad, np.int64)
        padded[: len(ids)] = ids
        return padded


def _is_invisible(character: str) -> bool:
    """Whether a character shows nothing by itself: control and format characters, marks on other characters, fillers."""
    return unicodedata.category(character) in ("Cc", "Cf", "Mn", "Me") or character in _FILLERS


def _marks(rules: tokenizers.Tokenizer) -> frozenset[int | None]:
    """Ids of tokens that mark something instead of being text: the end, padding, T5's blanks; not what is unknown."""
    added = json.loads(rules.to_str())["added_tokens"]
    marks = {rules.token_to_id(name) for name in ("</s>", "<pad>")} | {t["id"] for t in added if t["special"]}
    return frozenset(marks - {rules.token_to_id("<unk>")})
