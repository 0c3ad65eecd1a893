"""Prompt embeddings on disk: computed once, so that a server need not hold the text encoder in memory."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.errors import BadInput
from reelquant.runtime.files.atomic import check_writable, npy_bytes, partial_file

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class EmbeddingCache:
    """A folder of ``.npy`` files, one for each prompt and text encoder; several bundles may share it.

    A file's name is the sha256 of the encoder's own digest, the engine and the token ids, so that no other encoder's
    embedding is ever taken for this one's.
    """

    folder: str | os.PathLike[str]
    encoder: str

    def find(self, ids: NDArray[np.int64]) -> Floats | None:
        """The embedding float32 [text_tokens, text_width] of token ids, or None when it was never computed.

        Raises:
            BadInput: its file is damaged.
        """
        path = self.path(ids)
        if not path.is_file():
            return None
        try:
            embedding: Floats = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise BadInput(f"the embedding {path} is damaged ({error}); remove it, and it is made again") from error
        if embedding.dtype != np.float32 or embedding.ndim != 2 or len(embedding) != len(ids):
            raise BadInput(f"{path} is no embedding of {len(ids)} tokens; remove it, and it is made again")
        return embedding

    def check(self) -> None:
        """See that embeddings can be kept here, before a text encoder of gigabytes is loaded to make one.

        Raises:
            BadInput: the folder cannot be written.
        """
        check_writable(Path(self.folder), f"the embeddings' folder {self.folder}")

    def keep(self, ids: NDArray[np.int64], embedding: Floats) -> None:
        """Write an embedding, whole or not at all.

        Raises:
            BadInput: the folder cannot be written, or the disk is full.
        """
        with partial_file(self.path(ids)) as temporary:
            temporary.write_bytes(npy_bytes(embedding))

    def path(self, ids: NDArray[np.int64]) -> Path:
        key = hashlib.sha256(self.encoder.encode() + ids.astype("<i8").tobytes()).hexdigest()
        return Path(self.folder, f"{key}.npy")
