"""A prompt to the text encoder's token ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

from reelquant.runtime.errors import BadInput, BundleError


class Tokenizer:
    """A bundle's ``tokenizer.json``; truncation or padding stored in the file is not used."""

    def __init__(self, rules: tokenizers.Tokenizer, text_tokens: int, pad: int) -> None:
        self._rules, self.text_tokens, self.pad = rules, text_tokens, pad
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

    def encode(self, prompt: str, *, allow_empty: bool = False) -> NDArray[np.int64]:
        """Return int64 [text_tokens]: the prompt's ids, the end mark's, and padding.

        Raises:
            BadInput: the prompt is blank and ``allow_empty`` is false, or it has too many tokens.
        """
        if not allow_empty and not prompt.strip():
            raise BadInput("the prompt is empty; describe the clip in a sentence or two")
        ids = self._rules.encode(prompt).ids
        if len(ids) > self.text_tokens:
            raise BadInput(
                f"the prompt is {len(ids)} tokens long, its end mark included, and this model reads {self.text_tokens}; "
                f"shorten it by {len(ids) - self.text_tokens} or more"
            )
        padded = np.full(self.text_tokens, self.pad, np.int64)
        padded[: len(ids)] = ids
        return padded
