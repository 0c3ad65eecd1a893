"""Sampled latents in a file, so that a failed decode never costs the sampling again."""

from __future__ import annotations

import io
import json
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.errors import BadInput
from reelquant.runtime.files.atomic import partial_file
from reelquant.runtime.media.images import readable_file

SUFFIX = ".npz"
MAX_BYTES = 2**30


@dataclass(frozen=True, eq=False)
class SavedLatents:
    """Scaled latents float32 [latent_frames, channels, h, w], the digest of the VAE they are for, and how they came."""

    values: NDArray[np.float32]
    vae: str
    provenance: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``path`` whole or not at all.

        Raises:
            BadInput: it cannot be written, or the disk is full.
        """
        # Through memory: writing to a file itself, numpy reports a full disk without its errno.
        buffer = io.BytesIO()
        about = json.dumps({"vae": self.vae, "provenance": self.provenance}, sort_keys=True)
        np.savez(buffer, latents=self.values, about=np.array(about))
        with partial_file(Path(path)) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SavedLatents:
        """Read what :meth:`save` wrote; nothing is unpickled.

        Raises:
            BadInput: there is no such file, it is damaged, or its values are not finite.
        """
        path = Path(path)
        readable_file(path, "latents", MAX_BYTES)
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
                values, about = stored["latents"], json.loads(str(stored["about"]))
            saved = cls(values, str(about["vae"]), dict(about["provenance"]))
        except (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise BadInput(
                f"latents {path} are damaged, or no file of reelquant generate --latents: {error}"
            ) from error
        if values.dtype != np.float32 or values.ndim != 4 or not np.isfinite(values).all():
            raise BadInput(f"latents {path} are not finite float32 [latent_frames, channels, h, w]; sample them again")
        return saved
