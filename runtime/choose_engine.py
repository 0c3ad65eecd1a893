"""Which engine runs a bundle when the user names none."""

from __future__ import annotations

from importlib.util import find_spec

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.doctor import compiled_engines
from reelquant.runtime.engine import ENGINES, installed_engine
from reelquant.runtime.gpus import gpus


def choose_engine(bundle: Bundle) -> tuple[str, str]:
    """The first engine that ``bundle`` was built for and that can run here; else the default of those installed.

    The second value says why it is another than the bundle was built for; it is empty where it is not.
    """
    refused = compiled_engines(bundle, gpus())
    for engine in bundle.manifest.engines:
        if refused.get(engine, "") is None or (engine in ENGINES and find_spec(ENGINES[engine])):
            return engine, ""
    engine = installed_engine()
    built = list(bundle.manifest.engines)
    why = (
        f"built for {', '.join(built)}, which cannot run here: {refused.get(built[0]) or 'not installed'}"
        if built
        else ""
    )
    return engine, f"{bundle.path} is {why}; using {engine}" if why else ""
