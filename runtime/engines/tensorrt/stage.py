"""Build a bundle's engines: every graph for every size that is asked for, taken from the cache where it is there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from reelquant.runtime.bundle import ENGINES, Bundle, write_manifest
from reelquant.runtime.bundle.manifest import FileEntry, Manifest
from reelquant.runtime.bundle.support import Support
from reelquant.runtime.bundle.trust import remember_built
from reelquant.runtime.engines.engine import PlanEntry
from reelquant.runtime.engines.options import CURRENT, BuildSpec
from reelquant.runtime.engines.tensorrt.builder import Built, build_engine
from reelquant.runtime.engines.tensorrt.cache import CacheInputs, EngineCache, Entry, cache_key, changed_inputs
from reelquant.runtime.engines.tensorrt.evidence import Evidence, check_evidence, read_evidence
from reelquant.runtime.engines.tensorrt.flavor import Flavor
from reelquant.runtime.engines.tensorrt.graph_tools import static_copier, sum_graph
from reelquant.runtime.engines.tensorrt.loadable import gpu_name
from reelquant.runtime.engines.tensorrt.shapes import Profile, profile
from reelquant.runtime.engines.tensorrt.targets import unsupported
from reelquant.runtime.errors import BadInput
from reelquant.runtime.files.atomic import link_or_copy
from reelquant.runtime.machine.gpus import gpus
from reelquant.runtime.models import model_of
from reelquant.runtime.progress import SILENT, Progress
from reelquant.runtime.sizes import Size

SUM = ("sampling", "sum")  # component and graph of the engine that adds
_ROUND = 5  # of this code: raised when the same inputs would give another engine, or other evidence


@dataclass(frozen=True)
class Job:
    """One engine to build; ``file`` is its name in the bundle, ``onnx`` the graph where no file of the bundle is."""

    component: str
    graph: str
    profile: Profile
    cache_inputs: CacheInputs
    file: str
    onnx: bytes | None = None

    @property
    def name(self) -> str:
        return f"{self.component}/{self.graph}"


def jobs(bundle: Bundle, flavor: Flavor, spec: BuildSpec) -> list[Job]:
    """Every engine that ``spec`` asks for, each once.

    Raises:
        BadInput: a size that the model cannot make, or several of a graph that is for one size at a time.
        MissingExtra: what such graphs are read through is not installed.
    """
    found: dict[str, Job] = {}
    for component, graph, shapes in engine_profiles(bundle.manifest, spec):
        file = bundle.manifest.components[component].graphs[graph]
        formats = bundle.manifest.components[component].formats
        if _is_static(formats):
            if not shapes.is_static:
                check_dynamic(formats)
            static_copier()  # a missing tool is reported before the first build
        cache_inputs = _cache_inputs(bundle.manifest, component, file, flavor, shapes, spec)
        name = _file(flavor, component, graph, cache_inputs)
        found.setdefault(name, Job(component, graph, shapes, cache_inputs, name))
        if component == "transformer" and (adding := sum_graph()) is not None:
            job = _sum_job(bundle.manifest, flavor, shapes, spec, adding)
            found.setdefault(job.file, job)
    return list(found.values())


def _sum_job(manifest: Manifest, flavor: Flavor, transformer: Profile, spec: BuildSpec, onnx: bytes) -> Job:
    """What adds up latents, velocities and noise between two runs of the transformer."""
    channels = model_of(manifest).geometry.latent_channels
    least, usual, most = (
        {"values": channels * symbols["latent_frames"] * symbols["height"] * symbols["width"]}
        for symbols in (transformer.least, transformer.usual, transformer.most)
    )
    shapes = Profile(least, usual, most)
    cache_inputs = {
        **_common_inputs(flavor, shapes, spec), "graph": hashlib.sha256(onnx).hexdigest(), "weights": cache_key({})
    }  # fmt: skip
    return Job(*SUM, shapes, cache_inputs, _file(flavor, *SUM, cache_inputs), onnx)


def _file(flavor: Flavor, component: str, graph: str, cache_inputs: CacheInputs) -> str:
    return f"{ENGINES}/{flavor.engine}/{component}.{graph}.{cache_key(cache_inputs)[:12]}.engine"


def check_dynamic(formats: Mapping[str, Support]) -> None:
    """Raises:
    BadInput: TensorRT takes graphs of one of these formats for one size at a time.
    """
    for name, support in formats.items():
        if not support.dynamic:
            raise BadInput(
                f"TensorRT takes {name.upper()} graphs for one size at a time; leave --dynamic out, and name each with --clip"
            )


def _is_static(formats: Mapping[str, Support]) -> bool:
    return not all(support.dynamic for support in formats.values())


def engine_profiles(manifest: Manifest, spec: BuildSpec) -> Iterator[tuple[str, str, Profile]]:
    """(component, graph, profile) of every engine, some more than once; needs no TensorRT.

    Raises:
        BadInput: a size that the model cannot make.
    """
    for component, graph in manifest.graphs():
        for shapes in _profiles(manifest, component, spec):
            yield component, graph, shapes


def plan(bundle: Bundle, flavor: Flavor, spec: BuildSpec) -> list[PlanEntry]:
    """What a build would do, and why; nothing is built."""
    cache = EngineCache(spec.cache)
    before = bundle.manifest.engines.get(flavor.engine, {}).get("engines", [])
    return [_plan_entry(job, before, cache) for job in jobs(bundle, flavor, spec)]


def build_engines(bundle: Bundle, flavor: Flavor, spec: BuildSpec, progress: Progress = SILENT) -> Bundle:
    """Build what ``spec`` asks for, put it into the bundle, and write it into the manifest, last.

    Engines of this flavor that were in the bundle and are not wanted now are removed. An interrupted build goes on where
    it was: what is finished is in the cache.

    Raises:
        BadInput: a size that the model cannot make, a graph that is for one size at a time for several, or a disk that is full.
        MissingExtra: what such graphs are read through is not installed.
        BundleError: a file was changed, or the builder refuses a graph.
        EngineError: an engine is not what its graph asks for.
    """
    cache = EngineCache(spec.cache)
    built: list[tuple[Job, Entry]] = []
    records = []
    for job in jobs(bundle, flavor, spec):
        with progress.stage(f"build {job.name}", total=100) as advance:
            entry, was_there = cache.get(job.cache_inputs, partial(_build, bundle, flavor, job, spec, advance))
        if not was_there:
            remember_built([entry.sha256])
        built.append((job, entry))
        records.append(
            {
                "component": job.component,
                "graph": job.graph,
                "file": job.file,
                "profile": job.profile.as_json(),
                "cache_inputs": job.cache_inputs,
                "inputs": entry.facts["inputs"],
                "tensor_bytes": entry.facts["tensor_bytes"],
                "evidence": entry.facts["evidence"],
                "from_cache": was_there,
            }
        )
    files = {job.file: FileEntry(entry.file.stat().st_size, entry.sha256) for job, entry in built}
    # Only when all are built: a build that ends early leaves the bundle as it was.
    try:
        for job, entry in built:
            link_or_copy(entry.file, bundle.path / job.file)
        return _record(bundle, flavor, spec, records, files)
    except BaseException:
        for name in files.keys() - bundle.manifest.files.keys():
            (bundle.path / name).unlink(missing_ok=True)
        raise


def _record(
    bundle: Bundle,
    flavor: Flavor,
    spec: BuildSpec,
    records: Sequence[Mapping[str, Any]],
    files: Mapping[str, FileEntry],
) -> Bundle:
    own = f"{ENGINES}/{flavor.engine}/"
    manifest = bundle.manifest
    old = [name for name in manifest.files if name.startswith(own) and name not in files]
    kept = {name: entry for name, entry in manifest.files.items() if not name.startswith(own)}
    record = {
        "version": flavor.version(),
        "targets": list(spec.gpus),
        "gpu": current_gpu(spec.gpus, flavor),
        "build_seconds": {str(each["file"]): each["evidence"]["build_seconds"] for each in records},
        "engines": json.loads(json.dumps(list(records))),
    }
    changed = replace(manifest, files={**kept, **files}, engines={**manifest.engines, flavor.engine: record})
    write_manifest(bundle.path, changed)
    for name in old:
        (bundle.path / name).unlink(missing_ok=True)
    return Bundle.open(bundle.path)


def _build(
    bundle: Bundle, flavor: Flavor, job: Job, spec: BuildSpec, advance: Any
) -> tuple[memoryview, Mapping[str, Any]]:
    shown = 0

    def step(phase: str, done: int, total: int) -> bool:
        nonlocal shown
        share = min(100, 100 * done // max(total, 1))
        for _ in range(shown, share):
            advance()
        shown = max(shown, share)
        return True

    manifest = bundle.manifest
    if job.onnx is not None:
        built = build_engine(flavor, bundle.path / f"{job.name}.onnx", job.profile, spec, step, job.onnx)
        evidence = read_evidence(built.log, built.seconds, built.engine.nbytes, 0)
        return built.engine, _facts(built, evidence)
    bundle.check_hashes(lambda name: name.startswith(f"{job.component}/"))
    graph, onnx = bundle.graph(job.component, job.graph), None
    if _is_static(manifest.components[job.component].formats):
        onnx = static_copier()(graph, job.profile.most)
    built = build_engine(flavor, graph, job.profile, spec, step, onnx)
    evidence = read_evidence(built.log, built.seconds, built.engine.nbytes, scores_bytes(manifest, job))
    check_evidence(job.name, evidence, int(manifest.components[job.component].stats[job.graph]["weight_bytes"]))
    return built.engine, _facts(built, evidence)


def _facts(built: Built, evidence: Evidence) -> dict[str, Any]:
    return {"inputs": built.inputs, "tensor_bytes": built.tensor_bytes, "evidence": evidence.as_json()}


def scores_bytes(manifest: Manifest, job: Job) -> int:
    """Bytes of one attention's scores in 16 bit, at the most of the job's profile; 0 for all but the transformer."""
    if job.component != "transformer":
        return 0
    tokens = job.profile.most["tokens"]
    return 2 * model_of(manifest).heads * tokens**2


def _profiles(manifest: Manifest, component: str, spec: BuildSpec) -> Iterator[Profile]:
    sizes = [model_of(manifest).geometry.checked(size) for size in spec.sizes or (manifest.defaults.size,)]
    if not spec.dynamic:
        for size in sizes:
            yield profile(manifest, component, size, spec.tiled)
        return
    least, most = (
        Size(*(pick(sides) for sides in zip(*(_sides(s) for s in sizes), strict=True))) for pick in (min, max)
    )
    yield profile(manifest, component, most, spec.tiled, least)


def _sides(size: Size) -> tuple[int, int, int]:
    return size.frames, size.height, size.width


def _cache_inputs(
    manifest: Manifest, component: str, file: str, flavor: Flavor, shapes: Profile, spec: BuildSpec
) -> CacheInputs:
    weights = {
        name: entry.sha256
        for name, entry in manifest.files.items()
        if name.startswith(f"{component}/") and not name.endswith(".onnx")
    }
    return {
        **_common_inputs(flavor, shapes, spec),
        "graph": manifest.files[file].sha256,
        "weights": cache_key(weights),
    }


def _common_inputs(flavor: Flavor, shapes: Profile, spec: BuildSpec) -> CacheInputs:
    return {
        "engine": flavor.engine,
        "version": flavor.version(),
        "profile": shapes.as_json(),
        "targets": list(spec.gpus),
        "gpu": current_gpu(spec.gpus, flavor),
        "level": spec.level,
        "round": _ROUND,
    }


def current_gpu(gpus_wanted: tuple[str, ...], flavor: Flavor) -> str | None:
    """The GPU that ``--gpu current`` means; None where others are named.

    Raises:
        BadInput: there is none, or this flavor of TensorRT does not support it.
    """
    if gpus_wanted != (CURRENT,):
        return None
    here = gpus()
    if not here.names:
        raise BadInput(
            f"--gpu current is the GPU of this machine, and there is {here.reason}; name the GPUs to build for, such as "
            "--gpu sm89,sm120 (tensorrt-rtx), or build on the machine that will run it"
        )
    if refused := unsupported(flavor, here):
        raise BadInput(f"--gpu current cannot be built for: {refused}")
    return gpu_name(here)


def _plan_entry(job: Job, before: Sequence[Mapping[str, Any]], cache: EngineCache) -> PlanEntry:
    same = [each for each in before if (each["component"], each["graph"]) == (job.component, job.graph)]
    if any(each["file"] == job.file for each in same):
        return PlanEntry(job.name, job.file, "current", "nothing changed")
    nearest = min((changed_inputs(each["cache_inputs"], job.cache_inputs) for each in same), key=len, default=None)
    why = "not built before" if nearest is None else "; ".join(nearest)
    if cache.find(job.cache_inputs) is not None:
        return PlanEntry(job.name, job.file, "cached", why)
    return PlanEntry(job.name, job.file, "new" if nearest is None else "stale", why)


def records_of(manifest: Manifest, flavor: Flavor, component: str, graph: str) -> list[Mapping[str, Any]]:
    """What the manifest says of a graph's engines; nothing where none was built."""
    built = manifest.engines.get(flavor.engine, {}).get("engines", [])
    return [each for each in built if (each["component"], each["graph"]) == (component, graph)]


def find_engines(manifest: Manifest, flavor: Flavor, component: str, graph: str) -> list[Mapping[str, Any]]:
    """The records of a graph's engines, for every size that was built.

    Raises:
        BadInput: none was built.
    """
    found = records_of(manifest, flavor, component, graph)
    if not found:
        raise BadInput(
            f"the bundle has no {flavor.engine} engine of {component}/{graph}; build it with: "
            f"reelquant build BUNDLE --engine {flavor.engine} --gpu …"
        )
    return found
