"""The one way to change a bundle: a new folder, in which some components are written anew and all else is copied."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir

from reelquant.quant.graph.graph_files import load_graph, load_mapped, save_graphs
from reelquant.quant.graph.graph_stats import graph_stats
from reelquant.runtime.bundle import ENGINES, SCHEDULES, Bundle, list_files, write_manifest
from reelquant.runtime.bundle.manifest import Component
from reelquant.runtime.bundle.support import Support
from reelquant.runtime.files.atomic import partial_folder

Passes = Mapping[str, Mapping[str, Any]]  # graph → pass → what it counted


@dataclass
class Derivation:
    """A bundle in the making: ``folder`` has what is copied; ``changes`` are fields of the manifest that become others."""

    bundle: Bundle
    folder: Path
    components: dict[str, Component]
    changes: dict[str, Any] = field(default_factory=dict)

    def models(self, component: str) -> dict[str, ir.Model]:
        """The source's graphs by name, their weights mapped from its files."""
        graphs = self.bundle.manifest.components[component].graphs
        return {graph: load_mapped(self.bundle.graph(component, graph)) for graph in graphs}

    def write(self, component: str, models: Mapping[str, ir.Model]) -> Component:
        """Write ``models`` as the component's graphs; again, if it was written."""
        files = save_graphs(self.folder / component, models)
        stats = {graph: graph_stats(load_graph(self.folder / file)) for graph, file in files.items()}
        self.components[component] = made = replace(self.components[component], graphs=files, stats=stats)
        return made

    def note(self, component: str, passes: Passes) -> None:
        """Add to what the manifest says of passes over a component."""
        made = self.components[component]
        added = {graph: {**made.passes.get(graph, {}), **passes.get(graph, {})} for graph in made.graphs}
        self.components[component] = replace(made, passes=added)

    def keep(self, component: str) -> None:
        """Leave a component as it was after all."""
        start, self.components[component] = f"{component}/", self.bundle.manifest.components[component]
        self.bundle.copy_files(self.folder, lambda name: name.startswith(start))

    def compute(self, component: str, dtype: str) -> None:
        """Say what all of a component computes in that is not quantized."""
        self.components[component] = replace(self.components[component], compute=dtype)

    def formats(self, component: str, formats: Mapping[str, Support]) -> None:
        """Say which numerics a component has more of now."""
        made = self.components[component]
        self.components[component] = replace(made, formats={**made.formats, **formats})


@contextmanager
def derive_bundle(
    bundle: Bundle, out: Path, changed: Collection[str] = (), replace_out: bool = False, checked: bool = False
) -> Iterator[Derivation]:
    """Make ``out`` of ``bundle``: the components ``changed`` are to be written by whoever asked, everything else is the same, but for
    what was made of them: compiled engines, and of a transformer its schedules. The manifest is written last; when this raises, nothing is. ``checked`` says
    that the bundle's hashes were just compared. What is copied keeps its hash, so that a copy that went wrong is found when it is used.

    Raises:
        BadInput: ``out`` is taken, or the disk is full.
        BundleError: a file of the bundle was changed.
    """
    if not checked:
        bundle.check_hashes()
    manifest = bundle.manifest
    left = {*changed, *([ENGINES] if changed else []), *([SCHEDULES] if "transformer" in changed else [])}
    copied = {name: entry for name, entry in manifest.files.items() if name.split("/")[0] not in left}
    with partial_folder(out, replace_out) as folder:
        bundle.copy_files(folder, copied.__contains__)
        made = Derivation(bundle, folder, dict(manifest.components))
        yield made
        tools = {**manifest.tools, **({"onnx_ir": version("onnx_ir")} if changed else {})}
        changes = {
            "components": made.components,
            "engines": {} if changed else manifest.engines,
            "tools": tools,
            **made.changes,
        }
        files = copied | list_files(folder, lambda name: name not in copied)
        write_manifest(folder, replace(manifest, files=dict(sorted(files.items())), **changes))
