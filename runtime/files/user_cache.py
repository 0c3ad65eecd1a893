"""Where this user's own files are kept between runs: engines built before, and which of them were built here."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def user_cache(*names: str) -> Path:
    """``$REELQUANT_CACHE``, or reelquant's place in the user's cache folder as the system has it; ``names`` lead on from it."""
    if chosen := os.environ.get("REELQUANT_CACHE"):
        return Path(chosen, *names)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(base, "reelquant", *names)
