"""What an engine is: one object that says what it can do here, builds, and opens graphs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.bundle.manifest import Manifest
from reelquant.runtime.bundle.support import Support
from reelquant.runtime.engines.device_memory import ClipMemory
from reelquant.runtime.engines.memory import EngineMemory
from reelquant.runtime.engines.options import BuildSpec, EngineOptions
from reelquant.runtime.engines.precision_notes import Note
from reelquant.runtime.engines.session import Session
from reelquant.runtime.errors import BadInput, EngineError, imported
from reelquant.runtime.models.cogvideox.stages import Stage
from reelquant.runtime.progress import SILENT, Progress
from reelquant.runtime.sizes import Size

# What all others are held against: ONNX Runtime computes every graph of ours on any CPU, exactly as it says.
REFERENCE_ENGINE = "onnxruntime"


@dataclass(frozen=True)
class EngineReport:
    """One engine here. ``reason`` says why not, or what is worth knowing; ``remedy`` what to do; both may be empty."""

    engine: str
    usable: bool
    version: str | None
    devices: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class PlanEntry:
    """What a build would do for one graph at one size: ``state`` is "current", "cached", "new" or "stale"."""

    graph: str
    file: str
    state: str
    why: str


class Engine(ABC):
    """One engine. Its package is imported when a method needs it, and never before.

    ``name`` is what ``--engine`` and pip's extra call it, ``package`` what Python imports. ``memory`` says what graphs take
    on it, of the machine's memory; None where nobody has measured that. ``device_memory`` is the same of its own device's. ``quick_to_load`` says that graphs of a stream may be loaded for each use, so that memory is that
    of one at a time; where that takes long they stay until the clip is whole.
    """

    name: str
    package: str
    memory: EngineMemory | None = None
    device_memory: EngineMemory | None = None
    quick_to_load = True
    runs_onnx = True  # whether open_onnx opens anything

    # What it can do here.

    def installed(self) -> bool:
        """Whether its package is there; it may still fail to import."""
        return find_spec(self.package) is not None

    def module(self) -> Any:
        """The imported package.

        Raises:
            MissingExtra: it is not installed.
        """
        return imported(self.package, self.name)

    def version(self) -> str:
        """The package's version.

        Raises:
            MissingExtra: it is not installed.
        """
        return str(self.module().__version__)

    def report(self) -> EngineReport:
        """What it can do on this machine; never raises, whatever a broken package does."""
        try:
            return self.inspect(import_module(self.package))
        except Exception as error:  # noqa: BLE001 - a broken package may raise anything, and one must not hide the others
            if isinstance(error, ModuleNotFoundError) and error.name == self.package:
                reason = f"{self.package} is not installed"
                return EngineReport(self.name, False, None, "", reason, self.remedy())
            reason = f"{self.package} is installed but fails: {one_line(error)}"
            return EngineReport(self.name, False, self._installed_version(), "", reason, self.remedy(again=True))

    @abstractmethod
    def inspect(self, module: ModuleType) -> EngineReport:
        """The report, with the package imported."""

    def remedy(self, extra: str | None = None, again: bool = False) -> str:
        """The command that installs this engine, or another ``extra`` for it."""
        return f"pip install {'--force-reinstall ' if again else ''}'reelquant[{extra or self.name}]'"

    def precision_notes(self) -> tuple[Note, ...]:
        """What each precision is worth on this machine; empty where only a measurement could say."""
        return ()

    def fast_int8_convolutions(self) -> bool:
        """Whether they take less time than fp32's here, as measured (docs/benchmarks.md)."""
        return False

    def clip_memory(self, bundle: Bundle, size: Size, tiled: bool, stages: Sequence[Stage]) -> ClipMemory | None:
        """What a clip takes of the memory of the engine's own device; None where it computes in the machine's, or cannot say.

        Raises:
            BadInput: nothing was built for clips of this size.
        """
        return None

    def free_memory(self, options: EngineOptions) -> int:
        """Bytes that are free on the device, where :meth:`clip_memory` says something.

        Raises:
            BadInput: there is no such device.
            EngineError: it does not start.
        """
        raise EngineError(f"{self.name} computes in the machine's own memory")

    def device_seconds(self) -> float | None:
        """How long this process has computed on the engine's device; None where it does not say."""
        return None

    # What it does with a bundle.

    @property
    def accuracy_engine(self) -> str:
        """The engine on which a bundle for this one is held against its reference: itself, where that can be done."""
        return self.name

    def compute_dtype(self, trained: str) -> str:
        """What a checkpoint that was trained in ``trained`` computes in here, where the user does not say."""
        return "fp32"

    @abstractmethod
    def refuses(self, manifest: Manifest) -> str | None:
        """Why it cannot run this bundle here, as what follows a colon; None where it can. Its package is installed."""

    def files(self, component: str) -> str:
        """How the names of the files begin that it reads of a component."""
        return f"{component}/"

    @abstractmethod
    def check_build(self, spec: BuildSpec, formats: Mapping[str, Support] = MappingProxyType({})) -> None:
        """See before the work that what ``spec`` asks for can be built here, of graphs that compute in ``formats``.

        Raises:
            BadInput: it cannot; the message says what can.
            MissingExtra: the package is not installed.
        """

    @abstractmethod
    def plan(self, bundle: Bundle, spec: BuildSpec) -> list[PlanEntry]:
        """What :meth:`build` would do, and why; nothing is built.

        Raises:
            BadInput: it builds nothing ahead, or the size cannot be made.
        """

    @abstractmethod
    def build(self, bundle: Bundle, spec: BuildSpec, progress: Progress = SILENT) -> Bundle:
        """Make every graph of ``bundle`` ready, and write into its manifest that it is, last.

        Raises:
            BadInput: it cannot run the bundle, or what ``spec`` asks for cannot be built.
            MissingExtra: the package is not installed.
            BundleError: a file was changed, or the engine refuses a graph.
        """

    @abstractmethod
    def open(self, bundle: Bundle, component: str, graph: str, options: EngineOptions, lean: bool = False) -> Session:
        """Load one graph whose files' hashes were checked; with ``lean`` it takes less memory, and more time where shapes
        change from run to run.

        Raises:
            BadInput: there is no engine of this graph, or no such device.
            MissingExtra: the package is not installed.
            BundleError: the engine refuses the graph, or may not be loaded.
            EngineError: the device does not start.
        """

    def open_onnx(self, graph: Path, options: EngineOptions, lean: bool = False) -> Session:
        """Load an ONNX file that is in no bundle; as :meth:`open`.

        Raises:
            BadInput: it runs no ONNX files.
        """
        raise BadInput(f"{self.name} runs no ONNX files, only engines that were built from them")

    # Made of these.

    def check_runs(self, bundle: Bundle) -> None:
        """See that it can run ``bundle`` here.

        Raises:
            MissingExtra: the package is not installed.
            BadInput: it cannot.
        """
        self.version()
        if reason := self.refuses(bundle.manifest):
            raise BadInput(f"{self.name} cannot run {bundle.path} here: {reason}")

    def check_files(self, bundle: Bundle, component: str) -> None:
        """Compare what it will read of a component with its hashes.

        Raises:
            BundleError: a file is missing, truncated or changed; the message names it.
        """
        start = self.files(component)
        bundle.check_hashes(lambda file: file.startswith(start))

    def open_component(
        self, bundle: Bundle, component: str, options: EngineOptions, *graphs: str
    ) -> dict[str, Session]:
        """Check a component's files against their hashes, then load the named graphs (all when none is named).

        Raises:
            BundleError: a file was changed, or the engine refuses a graph; and as :meth:`open`.
        """
        self.check_files(bundle, component)
        known = bundle.manifest.components.get(component)
        wanted = graphs or (tuple(known.graphs) if known else ("main",))
        return {name: self.open(bundle, component, name, options) for name in wanted}

    def _installed_version(self) -> str | None:
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return None


def one_line(error: Exception) -> str:
    """An error's text for a table."""
    return " ".join(str(error).split()) or type(error).__name__


def run_failed(engine: str, graph: Path, error: Exception) -> EngineError:
    """What a user is told when ``engine`` fails inside a run of ``graph``."""
    why = " ".join(str(error).split())[:500]
    return EngineError(
        f"{engine} failed while it ran {graph}: {why}; if memory was short, a smaller size or fewer frames need less, "
        "else try another engine and report this one"
    )
