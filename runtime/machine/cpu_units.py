"""This CPU: how much of it there is for this process, and the units that decide which precisions are fast."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

# What decides the speed of INT8, bf16 and FP8 graphs on a CPU, under the kernel's names (x86, then Arm).
INSTRUCTION_SETS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
                    "asimddp", "i8mm", "bf16", "sve")  # fmt: skip
_CGROUP = "/sys/fs/cgroup"
# Those that multiply bytes and add the products in 32 bits: INT8 is exact there, and fast.
_INT8_UNITS = {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"}


def usable_cores() -> int:
    """How many logical CPUs' time this process may use: fewer than there are under taskset, in a container's cpuset, or by a
    container's quota (Kubernetes' ``limits.cpu``, Docker's ``--cpus``), of which a part counts as one.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return allowed if quota is None else min(allowed, max(1, math.ceil(quota)))


def threads_to_start() -> int | None:
    """How many threads an engine on the CPU is to start where it would start too many: it counts the machine's cores, and
    threads beyond :func:`usable_cores` wait and spin for each other. None where its own choice is right.
    """
    allowed = usable_cores()
    return allowed if allowed < (os.cpu_count() or 1) else None


def physical_cores() -> int | None:
    """How many of the CPUs that this process may use are cores of their own; None where the system does not say."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    topology = "/sys/devices/system/cpu/cpu{}/topology/{}"
    found = {
        tuple("".join(read_lines(topology.format(cpu, name))) for name in ("physical_package_id", "core_id"))
        for cpu in allowed
    }
    return None if ("", "") in found else len(found)


def cpu_quota() -> float | None:
    """CPUs that this process's cgroup may use at once, by time; None without a limit (cgroup version 2, then 1)."""
    own = "".join(line.removeprefix("0::") for line in read_lines("/proc/self/cgroup") if line.startswith("0::"))
    for folder in (f"{_CGROUP}{own}", _CGROUP):  # the second: in a container, where the first is a path outside it
        quota, _, period = "".join(read_lines(f"{folder}/cpu.max")).partition(" ")
        if quota.isdecimal() and period.isdecimal():
            return int(quota) / int(period)
    quota, period = ("".join(read_lines(f"{_CGROUP}/cpu/cpu.cfs_{name}_us")) for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


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
