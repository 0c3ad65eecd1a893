"""How much memory this process may still take, and how it gives back what it took."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Bytes that can be had without swapping: the machine's, or its container's where that has less. None: unknown."""
    found = [value for value in (_of_machine(), _of_container()) if value is not None]
    return min(found, default=None)


def is_short() -> bool:
    """Whether less memory is left than this process holds: it could not become twice as large. Not known is not short."""
    left, held = available_memory(), held_memory()
    return left is not None and held is not None and left < held


def held_memory() -> int | None:
    """Bytes that this process holds in memory now; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def give_back_at_once() -> None:
    """Let the C library give large blocks back to the system when they are freed (glibc; elsewhere nothing is changed).

    glibc keeps blocks below a threshold on its heap, where one that is still in use holds all that lie before it; and it
    raises that threshold, up to 32 MiB, to whatever was freed. A VAE's smaller tensors are just below. Set by hand, the
    threshold stays: see M_MMAP_THRESHOLD in mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-3, 1 << 20)


def _of_machine() -> int | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _of_container() -> int | None:
    """What a cgroup (version 2) leaves; the file cache that it counts can be given back, so it is not counted here."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        stats = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(int(limit) - used + int(stats.get("inactive_file", 0)), 0)
