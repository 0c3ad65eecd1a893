"""Which engines can run on this machine, why the others cannot, and what would mend it."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.choose_engine import why_not
from reelquant.runtime.engines.engine import EngineReport
from reelquant.runtime.engines.precision_notes import Note
from reelquant.runtime.engines.registry import engine_names, get_engine
from reelquant.runtime.errors import EngineError
from reelquant.runtime.machine.cpu_units import cpu_info, instruction_sets, read_lines, usable_cores


@dataclass(frozen=True)
class Machine:
    """``cores`` are the logical CPUs this process may use; ``memory`` the bytes it may, 0 when not known."""

    cpu: str
    cores: int
    memory: int
    instruction_sets: tuple[str, ...]
    python: str
    reelquant: str


def diagnose() -> list[EngineReport]:
    """Try every engine. Never raises for one that is missing or broken."""
    return [_report(name) for name in engine_names()]


def _report(name: str) -> EngineReport:
    try:
        return get_engine(name).report()
    except EngineError as error:  # of another package, which does not load
        return EngineReport(name, False, None, "", str(error), "")


def precisions(reports: Sequence[EngineReport]) -> dict[str, tuple[Note, ...]]:
    """What each precision is worth on this machine, by engine: of those that are usable and can say."""
    made = {report.engine: get_engine(report.engine).precision_notes() for report in reports if report.usable}
    return {engine: notes for engine, notes in made.items() if notes}


def built_engines(bundle: Bundle) -> dict[str, str | None]:
    """Why the engines that ``bundle`` was built for cannot run it here, by engine; None where they can."""
    return {name: why_not(bundle, name) for name in bundle.manifest.engines}


def machine() -> Machine:
    """This machine's facts, read from /proc where there is one."""
    return Machine(
        cpu=cpu_info().get("model name") or platform.processor() or platform.machine(),
        cores=usable_cores(),
        memory=_memory(),
        instruction_sets=instruction_sets(),
        python=platform.python_version(),
        reelquant=metadata.version("reelquant"),
    )


def _memory() -> int:
    limits = [int(text) for text in read_lines("/sys/fs/cgroup/memory.max") if text.isdecimal()]
    if sys.platform != "win32":
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(limits, default=0)
