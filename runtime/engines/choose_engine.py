"""Which engine runs a bundle."""

from __future__ import annotations

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.engine import Engine
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.registry import engine_names, get_engine, installed_engine
from reelquant.runtime.errors import EngineError


def choose_engine(bundle: Bundle, options: EngineOptions) -> tuple[Engine, str]:
    """The engine that ``options`` name; without one, the first that ``bundle`` was built for and that can run here, else the
    default of those installed.

    The second value says why it is another than the bundle was built for; it is empty where it is not, or was named.

    Raises:
        BadInput: there is no engine of that name.
    """
    if options.engine is not None:
        return get_engine(options.engine), ""
    refused = {}
    for name in bundle.manifest.engines:
        refused[name] = why_not(bundle, name)
        if refused[name] is None:
            return get_engine(name), ""
    engine = installed_engine()
    if not refused:
        return engine, ""
    why = f"built for {', '.join(refused)}, which cannot run here: {next(iter(refused.values()))}"
    return engine, f"{bundle.path} is {why}; using {engine.name}"


def why_not(bundle: Bundle, name: str) -> str | None:
    """Why the engine of this name cannot run ``bundle`` here; None where it can."""
    if name not in engine_names():
        return f"there is no engine {name} here"
    try:
        engine = get_engine(name)
    except EngineError as error:
        return str(error)
    return engine.refuses(bundle.manifest) if engine.installed() else f"not installed: {engine.remedy()}"
