"""Which folders ``--replace`` may replace: those that hold a bundle or ranges of ours, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reelquant.runtime.errors import BadInput

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
# What tells our files from others of the same names, in this version and in others.
_BUNDLE = {"format", "components", "files"}
_RANGES = {"version", "digest", "provenance"}


def check_replaceable(path: Path) -> None:
    """See that the folder ``path`` holds a bundle or ranges, whole or not, and no file beside them.

    Raises:
        BadInput: it does not; nothing of it was touched.
    """
    manifest, ranges = _read(path / MANIFEST), _read(path / "ranges.json")
    if manifest.keys() >= _BUNDLE and isinstance(manifest["files"], dict):
        known = {MANIFEST, SIGNATURE, *manifest["files"]}
    elif ranges.keys() >= _RANGES:
        known = {"ranges.json", "ranges.safetensors"}
    else:
        raise BadInput(f"{path} holds no bundle, so it is not replaced; choose another name, or remove it yourself")
    files = (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_symlink() or not file.is_dir())
    strange = sorted(set(files) - known)
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise BadInput(
            f"{path} holds what is no part of a bundle, so it is not replaced: {', '.join(strange[:3])}{more}; "
            "move that away or choose another name"
        )


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
