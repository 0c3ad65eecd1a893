"""What ``reelquant tune`` found on this machine, where it is kept, and how a pipeline is opened by it."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.choose_engine import why_not
from reelquant.runtime.engines.options import AUTO, EngineOptions
from reelquant.runtime.engines.registry import get_engine
from reelquant.runtime.errors import BadInput
from reelquant.runtime.files.atomic import partial_file
from reelquant.runtime.files.user_cache import user_cache
from reelquant.runtime.machine.cpu_units import cpu_info, instruction_sets, usable_cores
from reelquant.runtime.machine.gpus import gpus
from reelquant.runtime.sizes import Size


@dataclass(frozen=True)
class Tuned:
    """The fastest of what was measured for clips of ``size``.

    ``engine`` was of ``version``; ``threads`` None is the engine's choice; ``batch`` halves of guidance are one run.
    ``clip_seconds`` is what a clip of the bundle's steps would take.
    """

    size: str
    engine: str
    version: str
    threads: int | None
    batch: int
    clip_seconds: float


def remember(bundle: Bundle, tuned: Tuned) -> Path:
    """Keep ``tuned`` for this bundle, this machine and its size, in the place of what was found before; return the file.

    Raises:
        BadInput: the user's cache cannot be written.
    """
    file = _file(bundle)
    kept = {**{each.size: each for each in _read(file)}, tuned.size: tuned}
    file.parent.mkdir(parents=True, exist_ok=True)
    with partial_file(file) as temporary:
        temporary.write_text(json.dumps([asdict(each) for each in kept.values()], indent=1) + "\n", encoding="utf-8")
    return file


def recall(bundle: Bundle, size: Size) -> Tuned | None:
    """What was found on this machine for the size, or for that nearest to it; None where nothing was."""
    wanted = _pixels(str(size))
    found = _read(_file(bundle))
    return min(found, key=lambda each: abs(math.log(_pixels(each.size) / wanted)), default=None)


def tuned_options(bundle: Bundle, options: EngineOptions, size: Size | None = None) -> tuple[EngineOptions, str]:
    """``options`` with the engine, threads and batch that are the fastest here for clips of ``size`` (the bundle's own without
    one), where they name no engine and something was tuned; and what to tell a user, usually nothing.
    """
    if options.engine not in (None, AUTO):
        return options, ""
    plain = replace(options, engine=None)
    found = recall(bundle, size or bundle.manifest.defaults.size)
    again = f"run: reelquant tune {bundle.path}"
    if found is None:
        return plain, f"nothing was tuned here for {bundle.path}; {again}" if options.engine == AUTO else ""
    if reason := why_not(bundle, found.engine):
        return plain, f"{bundle.path} was tuned for {found.engine}, which cannot run it now: {reason}; {again}"
    if (version := get_engine(found.engine).version()) != found.version:
        return plain, f"{bundle.path} was tuned with {found.engine} {found.version}, and this is {version}; {again}"
    threads, batch = options.cpu_threads() or found.threads, options.batch or found.batch
    return replace(plain, engine=found.engine, threads=threads, batch=batch), ""


def _file(bundle: Bundle) -> Path:
    """One file for each bundle and each machine: a home folder may be on several."""
    here = [cpu_info().get("model name", ""), instruction_sets(), usable_cores(), gpus().names]
    key = hashlib.sha256(json.dumps([bundle.digest, here]).encode()).hexdigest()
    return user_cache("tuned", f"{key}.json")


def _read(file: Path) -> list[Tuned]:
    """What ``file`` holds; nothing where it is missing or damaged, since it can be measured again."""
    try:
        found = [Tuned(**each) for each in json.loads(file.read_text(encoding="utf-8"))]
        return [each for each in found if _pixels(each.size) > 0 and each.batch in (1, 2)]
    except (OSError, ValueError, TypeError, BadInput):
        return []


def _pixels(size: str) -> int:
    found = Size.parse(size)
    return found.frames * found.height * found.width
