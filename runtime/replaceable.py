"""Which folders ``--replace`` may replace: those that hold a bundle or ranges of ours, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

from reelquant.runtime.errors import BadInput

_MARKS = ("manifest.json", "ranges.json")
_OURS = {"manifest.sig", "tokenizer.json", "recipe.toml", "positions.npy", "text_encoder", "transformer", "vae_decoder",
         "vae_encoder", "engines", "ranges.safetensors", *_MARKS}  # fmt: skip


def check_replaceable(path: Path) -> None:
    """See that the folder ``path`` holds a bundle or ranges, whole or damaged, and no file beside them.

    Raises:
        BadInput: it does not; nothing of it was touched.
    """
    if path.is_symlink():
        raise BadInput(f"{path} is a link, and only a folder itself is replaced; name the folder that it points to")
    names = {entry.name for entry in path.iterdir()}
    if not names.intersection(_MARKS):
        raise BadInput(f"{path} holds no bundle, so it is not replaced; choose another name, or remove it yourself")
    strange = sorted(names - _OURS) or _unlisted(path)
    if strange:
        raise BadInput(
            f"{path} holds {strange[0]}, which is no part of a bundle, so it is not replaced; move that away or choose another name"
        )


def _unlisted(path: Path) -> list[str]:
    """Files that a bundle's manifest does not name; none where the manifest cannot be read."""
    try:
        listed = {*json.loads((path / "manifest.json").read_text(encoding="utf-8"))["files"], *_OURS}
    except (OSError, ValueError, KeyError, TypeError):
        return []
    found = (file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir())
    return sorted(name for name in found if name not in listed)
