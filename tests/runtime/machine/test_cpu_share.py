"""How much of the CPU there is for this process: its cores, and the quota of a container."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reelquant.runtime.machine import cpu_units
from reelquant.runtime.machine.cpu_units import cpu_quota, physical_cores, threads_to_start, usable_cores


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cgroup file system of the test's own, in which this process is where the real one says."""
    monkeypatch.setattr(cpu_units, "_CGROUP", str(tmp_path))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "quota", "cores"),
    [("max 100000", None, 8), ("200000 100000", 2.0, 2), ("150000 100000", 1.5, 2), ("1000 100000", 0.01, 1),
     ("1600000 100000", 16.0, 8), ("", None, 8), ("nonsense", None, 8)],
)  # fmt: skip
def test_a_quota_of_version_2(text: str, quota: float | None, cores: int, cgroup: Path) -> None:
    (cgroup / "cpu.max").write_text(f"{text}\n")
    assert (cpu_quota(), usable_cores()) == (quota, cores)
    assert threads_to_start() == (cores if cores < 8 else None)


def test_a_quota_of_version_1(cgroup: Path) -> None:
    (cgroup / "cpu").mkdir()
    (cgroup / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (cgroup / "cpu" / "cpu.cfs_quota_us").write_text("300000\n")
    assert cpu_quota() == 3.0 and usable_cores() == 3
    (cgroup / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert cpu_quota() is None and usable_cores() == 8


def test_a_quota_in_the_processs_own_group(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of a container the file of the root is not there, and a service's is in its own folder."""
    real = cpu_units.read_lines
    lines = {"/proc/self/cgroup": ["0::/system.slice/clips.service"]}
    monkeypatch.setattr(cpu_units, "read_lines", lambda path: lines.get(path) or real(path))
    (cgroup / "system.slice" / "clips.service").mkdir(parents=True)
    (cgroup / "system.slice" / "clips.service" / "cpu.max").write_text("400000 100000\n")
    assert usable_cores() == 4


def test_two_threads_of_a_core_are_one(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = cpu_units.read_lines

    def lines(path: str) -> list[str]:
        if "/topology/" in path:
            number = int(path.split("/cpu/cpu")[1].split("/")[0])
            return ["0"] if path.endswith("physical_package_id") else [str(number % 4)]
        return real(path)

    monkeypatch.setattr(cpu_units, "read_lines", lines)
    assert physical_cores() == 4
    monkeypatch.setattr(cpu_units, "read_lines", lambda path: [])
    assert physical_cores() is None


def test_this_machine() -> None:
    cores = physical_cores()
    assert 1 <= usable_cores() <= (os.cpu_count() or 1) and (cores is None or 1 <= cores <= (os.cpu_count() or 1))
