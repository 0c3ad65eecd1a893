"""The fourth stage: make a bundle ready for an engine, and write down that it is.

OpenVINO and ONNX Runtime compile a graph when they load it, so for them nothing new is stored: every graph is compiled
once, and a graph that the engine cannot run fails here and not at a user's first request. TensorRT's engines are files.
"""

from __future__ import annotations

import time
from dataclasses import replace

from reelquant.runtime.bundle import Bundle, write_manifest
from reelquant.runtime.engine import engine_module, engine_version, is_compiled
from reelquant.runtime.engines.tensorrt.flavor import FLAVORS
from reelquant.runtime.engines.tensorrt.stage import Wanted, build_engines
from reelquant.runtime.graphs import check_base
from reelquant.runtime.progress import SILENT, Progress


def build_bundle(
    bundle: Bundle,
    engine: str,
    threads: int | None = None,
    progress: Progress = SILENT,
    wanted: Wanted | None = None,
) -> Bundle:
    """Compile every graph of ``bundle`` on ``engine`` and record version and seconds in its manifest.

    ``wanted`` says what TensorRT builds; without it, engines for the bundle's own size and the GPU of this machine.

    Raises:
        BadInput: the engine is unknown, or computes in another precision than the bundle.
        MissingExtra: its package is not installed.
        BundleError: a file was changed, or the engine refuses a graph.
    """
    version = engine_version(engine)
    if is_compiled(engine):
        return build_engines(bundle, FLAVORS[engine], wanted or Wanted(), progress)
    check_base(bundle, engine)
    bundle.check_hashes()
    graphs = {f"{component}/{graph}": bundle.graph(component, graph) for component, graph in bundle.manifest.graphs()}
    record: dict[str, float] = {}
    with progress.stage(f"build {engine}", len(graphs)) as advance:
        for name, file in graphs.items():
            began = time.monotonic()
            engine_module(engine).build(file, threads)
            record[name] = round(time.monotonic() - began, 3)
            advance()
    engines = {**bundle.manifest.engines, engine: {"version": version, "build_seconds": record}}
    write_manifest(bundle.path, replace(bundle.manifest, engines=engines))
    return Bundle.open(bundle.path)
