"""Build a bundle's engines: every graph for every size that is asked for, taken from the cache where it is there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from reelquant.runtime.atomic import link_or_copy
from reelquant.runtime.bundle import ENGINES, Bundle, write_manifest
from reelquant.runtime.engines.tensorrt.builder import BuildOptions, build_engine
from reelquant.runtime.engines.tensorrt.cache import Causes, EngineCache, Entry, cache_key, changed_causes
from reelquant.runtime.engines.tensorrt.evidence import check_evidence, read_evidence
from reelquant.runtime.engines.tensorrt.flavor import Flavor
from reelquant.runtime.engines.tensorrt.layers import engine_layers
from reelquant.runtime.engines.tensorrt.loadable import gpu_name
from reelquant.runtime.engines.tensorrt.shapes import Profile, Symbols, profile
from reelquant.runtime.engines.tensorrt.targets import CURRENT, unsupported
from reelquant.runtime.errors import BadInput, MissingExtra
from reelquant.runtime.gpus import gpus
from reelquant.runtime.manifest import FileEntry, Manifest
from reelquant.runtime.progress import SILENT, Progress
from reelquant.runtime.sizes import Size, checked
from reelquant.runtime.trust import remember_built

NVFP4_IS_STATIC = "TensorRT takes NVFP4 graphs for one size at a time; leave --dynamic out, and name each with --clip"
_ROUND = 2  # of this code: raised when the same causes would give another engine, or other evidence


@dataclass(frozen=True)
class Wanted:
    """What to build: for which sizes (the bundle's own when none is named), static or one ``dynamic`` profile for all of
    them; with ``tiled``, a VAE for tiles of large frames instead of whole ones.

    ``static_copy`` (:func:`reelquant.quant.static_shapes.static_copy`) is what NVFP4 graphs are read through.
    """

    sizes: tuple[Size, ...] = ()
    dynamic: bool = False
    tiled: bool = False
    options: BuildOptions = field(default_factory=BuildOptions)
    cache: Path | None = None
    static_copy: Callable[[Path, Symbols], bytes] | None = None


@dataclass(frozen=True)
class Job:
    """One engine to build; ``file`` is its name in the bundle."""

    component: str
    graph: str
    profile: Profile
    causes: Causes
    file: str

    @property
    def name(self) -> str:
        return f"{self.component}/{self.graph}"


@dataclass(frozen=True)
class Verdict:
    """What ``build --plan`` says of one engine: ``state`` is "current", "cached", "new" or "stale"."""

    job: Job
    state: str
    why: str


def jobs(bundle: Bundle, flavor: Flavor, wanted: Wanted) -> list[Job]:
    """Every engine that ``wanted`` asks for, each once.

    Raises:
        BadInput: a size that the model cannot make, or an NVFP4 graph for several.
        MissingExtra: what NVFP4 graphs are read through is not installed.
    """
    found: dict[str, Job] = {}
    for component, graph, shapes in engine_profiles(bundle.manifest, wanted):
        file = bundle.manifest.components[component].graphs[graph]
        if is_nvfp4(bundle.manifest, component, graph):
            _check_nvfp4(shapes, wanted)
        causes = _causes(bundle.manifest, component, file, flavor, shapes, wanted.options)
        name = f"{ENGINES}/{flavor.engine}/{component}.{graph}.{cache_key(causes)[:12]}.engine"
        found.setdefault(name, Job(component, graph, shapes, causes, name))
    return list(found.values())


def engine_profiles(manifest: Manifest, wanted: Wanted) -> Iterator[tuple[str, str, Profile]]:
    """(component, graph, profile) of every engine, some more than once; needs no TensorRT.

    Raises:
        BadInput: a size that the model cannot make.
    """
    for component, graph in manifest.graphs():
        for shapes in _profiles(manifest, component, wanted):
            yield component, graph, shapes


def plan(bundle: Bundle, flavor: Flavor, wanted: Wanted) -> list[Verdict]:
    """What a build would do, and why; nothing is built."""
    cache = EngineCache(wanted.cache)
    before = bundle.manifest.engines.get(flavor.engine, {}).get("engines", [])
    return [_verdict(job, before, cache) for job in jobs(bundle, flavor, wanted)]


def build_engines(bundle: Bundle, flavor: Flavor, wanted: Wanted, progress: Progress = SILENT) -> Bundle:
    """Build what ``wanted`` asks for, put it into the bundle, and write it into the manifest, last.

    Engines of this flavor that were in the bundle and are not wanted now are removed. An interrupted build goes on where
    it was: what is finished is in the cache.

    Raises:
        BadInput: a size that the model cannot make, an NVFP4 graph for several sizes, or a disk that is full.
        MissingExtra: what NVFP4 graphs are read through is not installed.
        BundleError: a file was changed, or the builder refuses a graph.
        EngineError: an engine is not what its graph asks for.
    """
    cache = EngineCache(wanted.cache)
    built: list[tuple[Job, Entry]] = []
    records = []
    for job in jobs(bundle, flavor, wanted):
        with progress.stage(f"build {job.name}", total=100) as advance:
            entry, was_there = cache.get(job.causes, partial(_build, bundle, flavor, job, wanted, advance))
        if not was_there:
            remember_built([entry.sha256])
        built.append((job, entry))
        records.append(
            {
                "component": job.component,
                "graph": job.graph,
                "file": job.file,
                "profile": job.profile.as_json(),
                "causes": job.causes,
                "inputs": entry.facts["inputs"],
                "evidence": entry.facts["evidence"],
                "from_cache": was_there,
            }
        )
    files = {job.file: FileEntry(entry.file.stat().st_size, entry.sha256) for job, entry in built}
    # Only when all are built: a build that ends early leaves the bundle as it was.
    try:
        for job, entry in built:
            link_or_copy(entry.file, bundle.path / job.file)
        return _record(bundle, flavor, wanted, records, files)
    except BaseException:
        for name in files.keys() - bundle.manifest.files.keys():
            (bundle.path / name).unlink(missing_ok=True)
        raise


def _record(
    bundle: Bundle,
    flavor: Flavor,
    wanted: Wanted,
    records: Sequence[Mapping[str, Any]],
    files: Mapping[str, FileEntry],
) -> Bundle:
    own = f"{ENGINES}/{flavor.engine}/"
    manifest = bundle.manifest
    old = [name for name in manifest.files if name.startswith(own) and name not in files]
    kept = {name: entry for name, entry in manifest.files.items() if not name.startswith(own)}
    record = {
        "version": flavor.version(),
        "targets": list(wanted.options.targets),
        "gpu": current_gpu(wanted.options, flavor),
        "build_seconds": {str(each["file"]): each["evidence"]["build_seconds"] for each in records},
        "engines": json.loads(json.dumps(list(records))),
    }
    changed = replace(manifest, files={**kept, **files}, engines={**manifest.engines, flavor.engine: record})
    write_manifest(bundle.path, changed)
    for name in old:
        (bundle.path / name).unlink(missing_ok=True)
    return Bundle.open(bundle.path)


def _build(
    bundle: Bundle, flavor: Flavor, job: Job, wanted: Wanted, advance: Any
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
    bundle.check_hashes(lambda name: name.startswith(f"{job.component}/"))
    graph, onnx = bundle.graph(job.component, job.graph), None
    if wanted.static_copy is not None and is_nvfp4(manifest, job.component, job.graph):
        onnx = wanted.static_copy(graph, job.profile.most)
    built = build_engine(flavor, graph, job.profile, wanted.options, step, onnx)
    evidence = read_evidence(built.log, built.seconds, built.engine.nbytes, scores_bytes(manifest, job))
    check_evidence(job.name, evidence, int(manifest.components[job.component].stats[job.graph]["weight_bytes"]))
    if runs_here(wanted.options.targets):
        evidence = replace(evidence, layers=engine_layers(flavor, built.engine))
    return built.engine, {"inputs": built.inputs, "evidence": evidence.as_json()}


def runs_here(targets: Sequence[str]) -> bool:
    """Whether an engine for ``targets`` is for the first GPU of this machine."""
    here = gpus()
    return bool(here.names) and (tuple(targets) == (CURRENT,) or here.targets[0] in targets)


def is_nvfp4(manifest: Manifest, component: str, graph: str) -> bool:
    """Whether a graph has weights in 4-bit floating point, which TensorRT alone computes with."""
    stored = manifest.components[component].stats.get(graph, {}).get("weight_bytes_by_dtype", {})
    return "FLOAT4E2M1" in stored


def _check_nvfp4(shapes: Profile, wanted: Wanted) -> None:
    if not shapes.is_static:
        raise BadInput(NVFP4_IS_STATIC)
    if wanted.static_copy is None:
        raise MissingExtra("building an NVFP4 graph needs onnx-ir, which", "export")


def scores_bytes(manifest: Manifest, job: Job) -> int:
    """Bytes of one attention's scores in 16 bit, at the most of the job's profile; 0 for all but the transformer."""
    if job.component != "transformer":
        return 0
    tokens = job.profile.most["tokens"]
    return 2 * int(manifest.transformer["num_attention_heads"]) * tokens**2


def _profiles(manifest: Manifest, component: str, wanted: Wanted) -> Iterator[Profile]:
    own = Size(manifest.defaults.frames, manifest.defaults.height, manifest.defaults.width)
    sizes = [checked(size, manifest.geometry) for size in wanted.sizes or (own,)]
    if not wanted.dynamic:
        for size in sizes:
            yield profile(manifest, component, size, wanted.tiled)
        return
    least, most = (
        Size(*(pick(sides) for sides in zip(*(_sides(s) for s in sizes), strict=True))) for pick in (min, max)
    )
    yield profile(manifest, component, most, wanted.tiled, least)


def _sides(size: Size) -> tuple[int, int, int]:
    return size.frames, size.height, size.width


def _causes(
    manifest: Manifest, component: str, file: str, flavor: Flavor, shapes: Profile, options: BuildOptions
) -> Causes:
    weights = {
        name: entry.sha256
        for name, entry in manifest.files.items()
        if name.startswith(f"{component}/") and not name.endswith(".onnx")
    }
    return {
        "engine": flavor.engine,
        "version": flavor.version(),
        "graph": manifest.files[file].sha256,
        "weights": cache_key(weights),
        "profile": shapes.as_json(),
        "targets": list(options.targets),
        "gpu": current_gpu(options, flavor),
        "level": options.level,
        "round": _ROUND,
    }


def current_gpu(options: BuildOptions, flavor: Flavor) -> str | None:
    """The GPU that ``--gpu current`` means; None where others are named.

    Raises:
        BadInput: there is none, or this flavor of TensorRT does not support it.
    """
    if options.targets != (CURRENT,):
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


def _verdict(job: Job, before: Sequence[Mapping[str, Any]], cache: EngineCache) -> Verdict:
    same = [each for each in before if (each["component"], each["graph"]) == (job.component, job.graph)]
    if any(each["file"] == job.file for each in same):
        return Verdict(job, "current", "nothing changed")
    nearest = min((changed_causes(each["causes"], job.causes) for each in same), key=len, default=None)
    why = "not built before" if nearest is None else "; ".join(nearest)
    if cache.find(job.causes) is not None:
        return Verdict(job, "cached", why)
    return Verdict(job, "new" if nearest is None else "stale", why)


def find_engines(manifest: Manifest, flavor: Flavor, component: str, graph: str) -> list[Mapping[str, Any]]:
    """The records of a graph's engines, for every size that was built.

    Raises:
        BadInput: none was built.
    """
    built = manifest.engines.get(flavor.engine, {}).get("engines", [])
    found = [each for each in built if (each["component"], each["graph"]) == (component, graph)]
    if not found:
        raise BadInput(
            f"the bundle has no {flavor.engine} engine of {component}/{graph}; build it with: "
            f"reelquant build BUNDLE --engine {flavor.engine} --gpu …"
        )
    return found
