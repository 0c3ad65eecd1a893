"""A graph as ONNX Runtime's CUDA provider is given it, and the files of such graphs in a bundle."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reelquant.runtime.bundle import ENGINES, Bundle, write_manifest
from reelquant.runtime.bundle.manifest import FileEntry, Manifest
from reelquant.runtime.engines.graph_tools import graph_tool
from reelquant.runtime.errors import BundleError, MissingExtra
from reelquant.runtime.files.atomic import partial_file
from reelquant.runtime.progress import SILENT, Progress

ENGINE = "onnxruntime-cuda"


@dataclass(frozen=True)
class Variant:
    """``onnx`` is the file, whose weights are those of the graph that it was made from; None where that graph needs no other.

    ``fused`` are the attentions that became one node each, ``whole`` those that hold their scores in memory. ``on_cpu`` are the kinds
    of nodes that compute on the CPU on each run, ``lacking`` those that have no kernel at all, both in words; ``kernels`` is the
    version of ONNX Runtime whose kernels these are.
    """

    onnx: bytes | None
    fused: tuple[str, ...]
    whole: tuple[str, ...]
    on_cpu: tuple[str, ...]
    lacking: tuple[str, ...]
    kernels: str


def variant_maker() -> Callable[[Path], Variant] | None:
    """What makes an ONNX file's variant; None where onnx is not installed."""
    return graph_tool("cuda_variant")


def build_variants(bundle: Bundle, check: Callable[[Path, bytes | None], None], progress: Progress = SILENT) -> Bundle:
    """Make the variant of every graph, let ``check`` try it, put those that differ into the bundle, and write the manifest, last.

    ``check`` takes a graph's path and the variant's bytes, None where it is the graph itself.

    Raises:
        MissingExtra: onnx is not installed.
        BundleError: there is no kernel of a node, or ``check`` refuses a graph.
    """
    make = variant_maker()
    if make is None:
        raise MissingExtra(f"building for {ENGINE} needs onnx-ir and onnx, of which one", "export")
    graphs = list(bundle.manifest.graphs())
    made: dict[str, Variant] = {}
    for component, graph in graphs:  # all of them before the first is opened: this takes no time
        variant = made[f"{component}/{graph}"] = make(bundle.graph(component, graph))
        _refuse(bundle, f"{component}/{graph}", variant)
        _say(f"{component}/{graph}", variant, progress)
    seconds: dict[str, float] = {}
    with progress.stage(f"build {ENGINE}", len(graphs)) as advance:
        for component, graph in graphs:
            began = time.monotonic()
            check(bundle.graph(component, graph), made[f"{component}/{graph}"].onnx)
            seconds[f"{component}/{graph}"] = round(time.monotonic() - began, 3)
            advance()
    return _write(bundle, made, seconds)


def find_variant(bundle: Bundle, component: str, graph: str) -> Path | None:
    """The file of a graph's variant; None where the bundle was not built, or the graph needs none.

    Raises:
        BundleError: it was made from another graph than the bundle's.
    """
    manifest = bundle.manifest
    record: dict[str, Any] | None = manifest.engines.get(ENGINE, {}).get("graphs", {}).get(f"{component}/{graph}")
    if record is None:
        return None
    if (
        record["file"] not in manifest.files
        or record["of"] != manifest.files[manifest.components[component].graphs[graph]].sha256
    ):
        raise BundleError(
            f"{record['file']} in {bundle.path} was made from another graph than the bundle's {component}/{graph}, or is not "
            f"listed; build it again: reelquant build BUNDLE --engine {ENGINE}"
        )
    return bundle.path / str(record["file"])


def _refuse(bundle: Bundle, name: str, variant: Variant) -> None:
    if variant.lacking:
        more = f" (and {len(variant.lacking) - 1} more)" if len(variant.lacking) > 1 else ""
        raise BundleError(
            f"{bundle.path}: {name}: ONNX Runtime {variant.kernels} has no kernel, on CUDA or the CPU, of {variant.lacking[0]}"
            f"{more}; export it with another --base, or run it on tensorrt-rtx or tensorrt"
        )


def _say(name: str, variant: Variant, progress: Progress) -> None:
    if variant.on_cpu:
        progress.say(
            f"{name}: computed on the CPU on each run, with copies there and back: {'; '.join(variant.on_cpu)}"
        )
    if variant.whole and name.startswith("transformer/"):
        progress.say(
            f"{name}: {len(variant.whole)} attentions have Q/DQ inside, and hold their scores in GPU memory; "
            "a recipe that leaves attentions high needs no such memory"
        )


def _write(bundle: Bundle, made: dict[str, Variant], seconds: dict[str, float]) -> Bundle:
    manifest, start = bundle.manifest, f"{ENGINES}/{ENGINE}/"
    files: dict[str, FileEntry] = {}
    graphs: dict[str, dict[str, Any]] = {}
    kept = {name: entry for name, entry in manifest.files.items() if not name.startswith(start)}
    old = manifest.files.keys() - kept.keys()
    try:
        for name, variant in made.items():
            if variant.onnx is None:
                continue
            sha256 = hashlib.sha256(variant.onnx).hexdigest()
            file = f"{start}{name.replace('/', '.')}.{sha256[:12]}.onnx"
            if file not in old:
                (bundle.path / file).parent.mkdir(parents=True, exist_ok=True)
                with partial_file(bundle.path / file) as temporary:
                    temporary.write_bytes(variant.onnx)
            files[file] = FileEntry(len(variant.onnx), sha256)
            graphs[name] = {"file": file, "of": _source_hash(manifest, name), "fused": len(variant.fused)}
        record = {
            "version": next(iter(made.values())).kernels if made else "",
            "build_seconds": seconds,
            "graphs": graphs,
            "on_cpu": {name: list(variant.on_cpu) for name, variant in made.items() if variant.on_cpu},
        }
        write_manifest(
            bundle.path, replace(manifest, files={**kept, **files}, engines={**manifest.engines, ENGINE: record})
        )
    except BaseException:
        for file in files.keys() - old:
            (bundle.path / file).unlink(missing_ok=True)
        raise
    for file in old - files.keys():
        (bundle.path / file).unlink(missing_ok=True)
    return Bundle.open(bundle.path)


def _source_hash(manifest: Manifest, name: str) -> str:
    component, graph = name.split("/")
    return manifest.files[manifest.components[component].graphs[graph]].sha256
