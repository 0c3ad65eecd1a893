"""Engines that compile a bundle's ONNX files when they load them: nothing is built ahead, and nothing more is stored."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from reelquant.runtime.bundle import Bundle, write_manifest
from reelquant.runtime.bundle.manifest import Manifest
from reelquant.runtime.bundle.support import Support
from reelquant.runtime.engines.engine import Engine, PlanEntry
from reelquant.runtime.engines.options import BuildSpec, EngineOptions
from reelquant.runtime.engines.session import Session
from reelquant.runtime.errors import BadInput
from reelquant.runtime.progress import SILENT, Progress


class OnnxEngine(Engine):
    """What is left to say of one: ``name``, ``package``, ``inspect`` and ``open_onnx``."""

    def refuses(self, manifest: Manifest) -> str | None:
        """Formats that no CPU computes, and bf16, which NumPy, which hands values over, does not have."""
        return self._no_bf16() if manifest.base == "bf16" else not_here(manifest.formats)

    def check_build(self, spec: BuildSpec, formats: Mapping[str, Support] = MappingProxyType({})) -> None:
        if replace(spec, threads=None, tiled=False) != BuildSpec():
            raise BadInput(
                "--clip, --dynamic, --gpu, --level and --cache are for engines that are built ahead, TensorRT's; "
                f"{self.name} compiles when it loads a graph"
            )
        if reason := not_here(formats):
            raise BadInput(f"{self.name} cannot run it: {reason}")
        if "bf16" in formats:
            raise BadInput(f"{self.name} cannot run it: {self._no_bf16()}")

    def plan(self, bundle: Bundle, spec: BuildSpec) -> list[PlanEntry]:
        raise BadInput(
            f"--plan is for engines that are built ahead, TensorRT's; {self.name} compiles when it loads a graph"
        )

    def build(self, bundle: Bundle, spec: BuildSpec, progress: Progress = SILENT) -> Bundle:
        """Compile every graph once, so that a graph that the engine cannot run fails here and not at a user's request."""
        self.check_build(spec)
        self.check_runs(bundle)
        bundle.check_hashes()
        options, record = EngineOptions(self.name, spec.threads), {}
        graphs = list(bundle.manifest.graphs())
        with progress.stage(f"build {self.name}", len(graphs)) as advance:
            for component, graph in graphs:
                began = time.monotonic()
                self.check_graph(bundle.graph(component, graph), options)
                record[f"{component}/{graph}"] = round(time.monotonic() - began, 3)
                advance()
        made = {"version": self.version(), "build_seconds": record}
        write_manifest(bundle.path, replace(bundle.manifest, engines={**bundle.manifest.engines, self.name: made}))
        return Bundle.open(bundle.path)

    def open(self, bundle: Bundle, component: str, graph: str, options: EngineOptions, lean: bool = False) -> Session:
        session = self.open_bundled(bundle.graph(component, graph), options, lean)
        if component == "transformer" and options.batch == 1:
            session.batch = 1
        return session

    def open_bundled(self, graph: Path, options: EngineOptions, lean: bool) -> Session:
        """As :meth:`open_onnx`, of a graph that is in a bundle and will be opened again."""
        return self.open_onnx(graph, options, lean)

    def check_graph(self, graph: Path, options: EngineOptions) -> None:
        """See that it can run the ONNX file ``graph``.

        Raises:
            BundleError: it cannot.
        """
        self.open_onnx(graph, options)

    def _no_bf16(self) -> str:
        return f"it computes in bf16, which {self.name} does not take here; export it with --base fp32"

    def refuse_device(self, options: EngineOptions) -> None:
        """Raises:
        BadInput: ``options`` name another GPU than the first, and this engine computes on the CPU here.
        """
        if options.device:
            raise BadInput(f"{self.name} computes on the CPU here; --device {options.device} is for engines on a GPU")


def not_here(formats: Mapping[str, Support]) -> str | None:
    """Which format no engine that runs ONNX files computes, as what follows a colon; None where there is none."""
    lacking = next((name for name, support in formats.items() if not support.cpu), None)
    return (
        f"it computes in {lacking.upper()}, which TensorRT alone takes; use --engine tensorrt-rtx" if lacking else None
    )
