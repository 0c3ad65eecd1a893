"""What memory is left: the machine's figure, or the container's where that has less."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from reelquant.runtime.machine import memory
from reelquant.runtime.machine.memory import available_memory

MIB = 1 << 20


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 MiB left, whose container's files lie in the folder that is returned."""
    (tmp_path / "meminfo").write_text("MemTotal: 16384 kB\nMemAvailable:    8192 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    return tmp_path


def contain(folder: Path, limit: str, used: int, cached: int) -> None:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\n")


def test_without_a_container(machine: Path) -> None:
    assert available_memory() == 8 * MIB


def test_a_container_with_less(machine: Path) -> None:
    contain(machine, str(6 * MIB), used=4 * MIB, cached=MIB)
    assert available_memory() == 3 * MIB
    contain(machine, str(2 * MIB), used=4 * MIB, cached=MIB)
    assert available_memory() == 0


def test_a_container_with_more_or_no_limit(machine: Path) -> None:
    contain(machine, str(64 * MIB), used=0, cached=0)
    assert available_memory() == 8 * MIB
    contain(machine, "max", used=0, cached=0)
    assert available_memory() == 8 * MIB


def test_a_machine_that_does_not_say(machine: Path) -> None:
    (machine / "meminfo").unlink()
    assert available_memory() is None


def test_this_machine() -> None:
    found = available_memory()
    assert found is None or found > 64 * MIB


FREE_ALL_BUT_ONE = """
import sys
import numpy as np
from reelquant.runtime.machine.memory import give_back_at_once
def resident():
    return int(open("/proc/self/statm").read().split()[1])
if sys.argv[1] == "set":
    give_back_at_once()
np.ones(1 << 21)  # once this is freed, glibc keeps what is smaller
before = resident()
blocks = [np.ones(1 << 18) for _ in range(100)]
last = blocks.pop()
del blocks
print((resident() - before) * 4096)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own setting")
def test_freed_blocks_below_one_in_use_are_given_back() -> None:
    """Of 200 MiB in blocks of two: without the setting all of them stay."""
    left = {
        setting: int(subprocess.check_output([sys.executable, "-c", FREE_ALL_BUT_ONE, setting]))
        for setting in ("set", "not")
    }
    assert left["set"] < 10 * MIB < 150 * MIB < left["not"]
