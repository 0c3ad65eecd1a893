"""Engines that were built before, found by everything that decides what an engine is.

An entry is ``KEY.engine`` and, written last, ``KEY.json``. Two processes that want one key build it once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reelquant.runtime.bundle import hash_file
from reelquant.runtime.errors import MissingExtra
from reelquant.runtime.files.atomic import partial_file
from reelquant.runtime.files.user_cache import user_cache

CacheInputs = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """One engine in the cache: its file, that file's sha256, and what its build found out."""

    file: Path
    sha256: str
    facts: Mapping[str, Any]


class EngineCache:
    """A folder of engines. ``inputs`` is what decides an engine: graph, weights, shapes, targets, versions, options."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or user_cache("engines")

    def find(self, inputs: CacheInputs) -> Entry | None:
        """The engine of ``inputs``, or None: not built, or not whole.

        Its hash is compared where it is loaded, not here: a hit must not cost reading gigabytes.
        """
        key = cache_key(inputs)
        file = self.folder / f"{key}.engine"
        try:
            facts = json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8"))
            if facts["inputs"] == _plain(inputs) and file.stat().st_size == facts["bytes"]:
                return Entry(file, facts["sha256"], facts["facts"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None

    def get(self, inputs: CacheInputs, build: Callable[[], tuple[memoryview, Mapping[str, Any]]]) -> tuple[Entry, bool]:
        """The engine of ``inputs``, built by ``build`` (bytes, facts) where there is none; and whether it was there.

        While another process builds the same one, this waits for it.

        Raises:
            MissingExtra: filelock is not installed.
            BadInput: the folder cannot be written, or the disk is full.
        """
        try:
            from filelock import FileLock
        except ImportError as error:
            raise MissingExtra("filelock", "tensorrt-rtx") from error
        found = self.find(inputs)
        if found is not None:
            return found, True
        key = cache_key(inputs)
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f"{key}.lock"):
            found = self.find(inputs)
            if found is not None:
                return found, True
            engine, facts = build()
            file = self.folder / f"{key}.engine"
            with partial_file(file) as temporary, temporary.open("wb") as handle:
                handle.write(engine)
            sha256 = hash_file(file)
            known = {"inputs": inputs, "sha256": sha256, "bytes": len(engine), "facts": facts}
            text = json.dumps(known, indent=1, sort_keys=True) + "\n"
            with partial_file(self.folder / f"{key}.json") as temporary:
                temporary.write_text(text, encoding="utf-8")
        return Entry(file, sha256, _plain(facts)), False


def cache_key(inputs: CacheInputs) -> str:
    """sha256 over all inputs: whatever changes one of them changes the key."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def changed_inputs(old: CacheInputs, new: CacheInputs) -> list[str]:
    """What differs, as ``"version 1.7.0 → 1.7.1"``, for a person to read."""
    old, new = _plain(old), _plain(new)
    return [
        f"{name} {_short(old.get(name))} → {_short(new.get(name))}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def _plain(inputs: CacheInputs) -> dict[str, Any]:
    """As JSON gives it back: tuples become lists."""
    plain: dict[str, Any] = json.loads(json.dumps(inputs))
    return plain


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:12]}…" if len(text) == 64 else text
