"""Prompts → embeddings: tokenizer, text encoder, and the embeddings that were kept before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.engines.session import Session
from reelquant.runtime.monitor import Monitor
from reelquant.runtime.sampling.embeddings import EmbeddingCache
from reelquant.runtime.sampling.tokenizer import Tokenizer

Floats = NDArray[np.float32]


def missing(prompts: list[str], tokenizer: Tokenizer, cache: EmbeddingCache | None) -> int:
    """How many of :func:`encode_text`'s ``prompts`` the text encoder is needed for.

    Raises:
        BadInput: a prompt is empty or too long.
    """
    ids = _ids(prompts, tokenizer)
    return len(ids) if cache is None else sum(not cache.path(each).is_file() for each in ids)


def encode_text(
    prompts: list[str],
    tokenizer: Tokenizer,
    cache: EmbeddingCache | None,
    encoder: Callable[[], Session],
    monitor: Monitor,
) -> Floats:
    """float32 [prompts, text_tokens, text_width]; all prompts but the last may be empty.

    Prompts are encoded one by one, so that an embedding has the same bits whether it was kept or not. ``encoder`` opens the
    text encoder, and is not called where all embeddings were kept.

    Raises:
        BadInput: a prompt is empty or too long, or what is missing could not be kept.
    """
    ids = _ids(prompts, tokenizer)
    embeds = [cache.find(each) if cache else None for each in ids]
    lacks = any(each is None for each in embeds)
    if lacks and cache:
        cache.check()
    session = encoder() if lacks else None
    with monitor.stage("text", len(ids)) as advance:
        for i, each in enumerate(ids):
            if session is not None and embeds[i] is None:
                embeds[i] = made = session.run({"input_ids": each[None]})["embeds"][0]
                if cache:
                    cache.keep(each, made)
            advance()
    return np.stack([each for each in embeds if each is not None])


def _ids(prompts: list[str], tokenizer: Tokenizer) -> list[NDArray[np.int64]]:
    return [tokenizer.encode(prompt, allow_empty=i < len(prompts) - 1) for i, prompt in enumerate(prompts)]
