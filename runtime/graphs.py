"""Open a bundle's graphs on an engine: ONNX files where the engine compiles them, engine files where it did."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engine import EnginePlan, Plan, is_compiled, open_plan
from reelquant.runtime.engines.tensorrt.cache import default_folder
from reelquant.runtime.engines.tensorrt.cuda import CudaRuntime
from reelquant.runtime.engines.tensorrt.device import Device
from reelquant.runtime.engines.tensorrt.flavor import FLAVORS
from reelquant.runtime.engines.tensorrt.loadable import check_loadable
from reelquant.runtime.engines.tensorrt.plan import EngineFile, TensorRtPlan
from reelquant.runtime.engines.tensorrt.session import TensorRtLoader
from reelquant.runtime.engines.tensorrt.stage import find_engines, is_nvfp4
from reelquant.runtime.errors import BadInput
from reelquant.runtime.gpus import gpus
from reelquant.runtime.trust import OWN, Trust, check_trust


def open_graph(
    bundle: Bundle,
    component: str,
    graph: str,
    engine: str,
    threads: int | None = None,
    lean: bool = False,
    trust: Trust = OWN,
) -> EnginePlan:
    """Load one graph whose files' hashes were checked; ``lean`` as :func:`reelquant.runtime.engine.open_plan`'s.

    Raises:
        BadInput: the engine is unknown, or TensorRT has no engine of this graph.
        MissingExtra: the engine's package is not installed.
        BundleError: the engine refuses the graph, or may not be loaded.
        EngineError: there is no GPU to run it.
    """
    if not is_compiled(engine):
        return open_plan(engine, bundle.graph(component, graph), threads, lean)
    records = find_engines(bundle.manifest, FLAVORS[engine], component, graph)
    check_loadable(FLAVORS[engine], bundle.manifest.engines[engine], gpus())
    check_trust(bundle, [str(record["file"]) for record in records], trust)
    files = [EngineFile.of_record(bundle.path, record) for record in records]
    return TensorRtPlan(device(engine), files)


def open_graphs(
    bundle: Bundle, component: str, engine: str, *names: str, threads: int | None = None, trust: Trust = OWN
) -> dict[str, Plan]:
    """Check a component's files against their hashes, then load the named graphs (all when none is named).

    Raises:
        BundleError: a file was changed, or the engine refuses a graph.
    """
    check_component(bundle, component, engine)
    known = bundle.manifest.components.get(component)
    wanted = names or (tuple(known.graphs) if known else ("main",))
    return {name: open_graph(bundle, component, name, engine, threads, trust=trust) for name in wanted}


def check_component(bundle: Bundle, component: str, engine: str) -> None:
    """Compare what ``engine`` will read of a component with its hashes.

    Raises:
        BundleError: a file is missing, truncated or changed; the message names it.
    """
    start = f"engines/{engine}/{component}." if is_compiled(engine) else f"{component}/"
    bundle.check_hashes(lambda file: file.startswith(start))


def check_base(bundle: Bundle, engine: str) -> None:
    """See that a CPU engine can run this bundle: NumPy, which hands values over, has no bf16, and TensorRT alone has FP4.

    Raises:
        BadInput: it cannot.
    """
    if bundle.manifest.base == "bf16" and not is_compiled(engine):
        raise BadInput(f"{bundle.path} computes in bf16, which {engine} does not take here; export it with --base fp32")
    if any(is_nvfp4(bundle.manifest, name, graph) for name, graph in bundle.manifest.graphs()):
        raise BadInput(f"{bundle.path} computes in NVFP4, which TensorRT alone takes; use --engine tensorrt-rtx")


@cache
def device(engine: str) -> Device:
    """This process's GPU for one flavor of TensorRT.

    Raises:
        MissingExtra: the flavor's package or cuda-bindings is not installed.
        EngineError: there is no GPU or driver.
    """
    cuda = CudaRuntime()
    return Device(cuda, TensorRtLoader(FLAVORS[engine], Path(default_folder().parent, "kernels")))


def device_seconds(engine: str) -> float | None:
    """How long this process's GPU has computed for a flavor of TensorRT; None for engines that do not say."""
    return device(engine).seconds if is_compiled(engine) else None
