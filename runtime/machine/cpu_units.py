"""The units of this CPU that decide which precisions are fast."""

from __future__ import annotations

import os
import platform
from pathlib import Path

# What decides the speed of INT8, bf16 and FP8 graphs on a CPU, under the kernel's names (x86, then Arm).
INSTRUCTION_SETS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
                    "asimddp", "i8mm", "bf16", "sve")  # fmt: skip
# Those that multiply bytes and add the products in 32 bits: INT8 is exact there, and fast.
_INT8_UNITS = {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"}


def usable_cores() -> int:
    """How many cores this process may use: fewer than there are under taskset, or in a container's cpuset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_info() -> dict[str, str]:
    """The first processor's fields of /proc/cpuinfo; empty where there is no such file."""
    pairs = (line.partition(":") for line in read_lines("/proc/cpuinfo"))
    found: dict[str, str] = {}
    for key, _, value in pairs:
        found.setdefault(key.strip(), value.strip())
    return found


def instruction_sets() -> tuple[str, ...]:
    """Those of :data:`INSTRUCTION_SETS` that this CPU has; none where the system does not say."""
    info = cpu_info()
    flags = info.get("flags", info.get("Features", "")).split()
    return tuple(name for name in INSTRUCTION_SETS if name in flags)


def has_int8_units() -> bool:
    """Whether this CPU adds products of bytes in 32 bits. An x86 CPU that does not say so is taken to lack them."""
    return is_arm() or bool(_INT8_UNITS.intersection(instruction_sets()))


def read_lines(path: str) -> list[str]:
    """A small text file's lines; none where it cannot be read."""
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def is_arm() -> bool:
    return platform.machine().lower() in ("aarch64", "arm64")
