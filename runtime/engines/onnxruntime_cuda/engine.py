"""ONNX Runtime on an NVIDIA GPU: every value on the device, attention as one node, and no word of the CPU unsaid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType, ModuleType

from reelquant.runtime.bundle import ENGINES, Bundle
from reelquant.runtime.bundle.manifest import Component, Manifest
from reelquant.runtime.bundle.support import Support
from reelquant.runtime.engines.engine import REFERENCE_ENGINE, EngineReport
from reelquant.runtime.engines.onnx_engine import OnnxEngine, not_here
from reelquant.runtime.engines.onnxruntime import cannot_load, new_options
from reelquant.runtime.engines.onnxruntime_cuda.session import DeviceSession
from reelquant.runtime.engines.onnxruntime_cuda.starts import CUDA, providers, why_not
from reelquant.runtime.engines.onnxruntime_cuda.variant import ENGINE, build_variants, find_variant, variant_maker
from reelquant.runtime.engines.options import BuildSpec, EngineOptions
from reelquant.runtime.engines.session import Session
from reelquant.runtime.errors import BadInput, EngineError, MissingExtra
from reelquant.runtime.machine.gpus import gpus
from reelquant.runtime.progress import SILENT, Progress


class OnnxRuntimeCuda(OnnxEngine):
    """The engine, on the GPU that is named, else the first. With ``device`` "cpu" the same code computes on the host, where there is
    no GPU to try it on. Its package has the name of the CPU's, and is another build.
    """

    name, package = ENGINE, "onnxruntime"
    quick_to_load = False  # weights go to the device, and cuDNN chooses kernels again

    def __init__(self, device: str = "cuda") -> None:
        self._device = device
        self._started: set[int] = set()

    def installed(self) -> bool:
        """Whether onnxruntime is there, in a build with CUDA; nothing is imported to see it."""
        found = find_spec(self.package)
        places = found.submodule_search_locations or [] if found is not None else []
        names = ("libonnxruntime_providers_cuda.so", "onnxruntime_providers_cuda.dll")
        return any((Path(place) / "capi" / name).exists() for place in places for name in names)

    def inspect(self, module: ModuleType) -> EngineReport:
        version, found = str(module.__version__), gpus()
        devices = ", ".join(found.names)
        reason = why_not(module)
        if not reason:
            return EngineReport(self.name, True, version, devices, "", "")
        if CUDA not in module.get_available_providers():
            return EngineReport(self.name, False, version, "", reason, self._replace())
        if not found.names:
            remedy = "run on openvino, or on a machine with an NVIDIA GPU and its driver"
            return EngineReport(self.name, False, version, "", f"CUDA does not start: {reason}", remedy)
        return EngineReport(self.name, False, version, "", f"CUDA does not start: {reason}", self.remedy(again=True))

    @property
    def accuracy_engine(self) -> str:
        """Itself where CUDA starts; a bundle for it may be made on another machine."""
        return self.name if self._device == "cpu" or self.report().usable else REFERENCE_ENGINE

    def compute_dtype(self, trained: str) -> str:
        """The 16 bit that the checkpoint was trained in, or bf16, which overflows nowhere."""
        return trained if trained == "fp16" else "bf16"

    def refuses(self, manifest: Manifest) -> str | None:
        if reason := not_here(manifest.formats):
            return reason
        if self.name not in manifest.engines and any(part.compute == "bf16" for part in _in_16bit(manifest)):
            build = f"reelquant build BUNDLE --engine {self.name}"
            return (
                f"its bf16 graphs run on CUDA once float32 stands in for what it lacks in bf16; build it with: {build}"
            )
        return None if self._device == "cpu" or gpus().names else gpus().reason

    def check_build(self, spec: BuildSpec, formats: Mapping[str, Support] = MappingProxyType({})) -> None:
        super().check_build(spec, {name: support for name, support in formats.items() if name != "bf16"})
        if variant_maker() is None:
            raise MissingExtra(f"building for {self.name} needs onnx-ir and onnx, of which one", "export")

    def build(self, bundle: Bundle, spec: BuildSpec, progress: Progress = SILENT) -> Bundle:
        """Write the graphs with attention as one node into the bundle, once every node of every graph has a kernel; where there is a
        GPU, each is opened on it.
        """
        self.check_build(spec)
        if reason := not_here(bundle.manifest.formats):
            raise BadInput(f"{self.name} cannot run {bundle.path}: {reason}")
        bundle.check_hashes()
        options, here = EngineOptions(self.name, spec.threads), self.report()
        if not here.usable:
            progress.say(f"graphs are held against the list of CUDA's kernels, and not opened here: {here.reason}")

        def check(graph: Path, onnx: bytes | None) -> None:
            if here.usable:
                self._opened(graph, onnx, options)

        return build_variants(bundle, check, progress)

    def open(self, bundle: Bundle, component: str, graph: str, options: EngineOptions, lean: bool = False) -> Session:
        """As an engine's ``open``: the graph that :meth:`build` wrote, else the bundle's own."""
        variant = find_variant(bundle, component, graph)
        onnx = variant.read_bytes() if variant is not None else None
        session = self._opened(bundle.graph(component, graph), onnx, options, lean)
        if component == "transformer" and options.batch == 1:
            session.batch = 1
        return session

    def open_onnx(self, graph: Path, options: EngineOptions, lean: bool = False) -> Session:
        """Open an ONNX file that is in no bundle; attention becomes one node where onnx is installed, as for calibration.

        Raises:
            MissingExtra: onnxruntime is not installed, or not in a build with CUDA.
            BadInput: there is no GPU of this number.
            BundleError: ONNX Runtime refuses the graph.
            EngineError: CUDA does not start.
        """
        make = variant_maker()
        try:
            onnx = make(graph).onnx if make is not None else None
        except Exception as error:  # a damaged file: onnx's exceptions share no base but Exception
            raise cannot_load(self.version(), graph, error) from error
        return self._opened(graph, onnx, options, lean)

    def check_files(self, bundle: Bundle, component: str) -> None:
        starts = (self.files(component), f"{ENGINES}/{self.name}/{component}.")
        bundle.check_hashes(lambda file: file.startswith(starts))

    def start(self, device: int) -> None:
        """See that CUDA starts on a GPU, once in this process.

        Raises:
            MissingExtra: onnxruntime is not installed, or not in a build with CUDA.
            BadInput: there is no GPU of this number.
            EngineError: CUDA does not start.
        """
        if device in self._started or self._device == "cpu":
            return
        module, found = self.module(), gpus()
        if found.names and device >= len(found.names):
            raise BadInput(f"there is no GPU {device} here, only {', '.join(found.names)}; see: reelquant doctor")
        if reason := why_not(module, device):
            has_cuda = CUDA in module.get_available_providers()
            remedy = self.remedy(again=True) if has_cuda else self._replace()
            raise EngineError(
                f"ONNX Runtime {self.version()} does not start on the GPU: {reason}; "
                f"{remedy if found.names else 'it needs an NVIDIA GPU and its driver'}, or run on the CPU: --engine onnxruntime"
            )
        self._started.add(device)

    def _opened(self, graph: Path, onnx: bytes | None, options: EngineOptions, lean: bool = False) -> DeviceSession:
        self.start(options.device)
        module = self.module()
        chosen = new_options(module, options)
        if onnx is not None:
            chosen.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.parent))
        source = str(graph) if onnx is None else onnx
        wanted = ["CPUExecutionProvider"] if self._device == "cpu" else providers(options.device)
        try:
            # No fallback: where CUDA fails to start, it would run on the CPU without a word.
            loaded = module.InferenceSession(source, chosen, providers=wanted, enable_fallback=0)
        except Exception as error:  # onnxruntime's exception classes share no public base but Exception
            raise cannot_load(self.version(), graph, error) from error
        if self._device == "cuda" and CUDA not in loaded.get_providers():
            raise EngineError(f"ONNX Runtime {self.version()} gave up CUDA for {graph}; see: reelquant doctor")
        return DeviceSession(module, loaded, graph, (self._device, options.device), lean)

    def _replace(self) -> str:
        """How to come by the build with CUDA: the other has the same name in Python, and whichever is installed last is there."""
        return f"pip uninstall onnxruntime && {self.remedy(again=True)}"


def _in_16bit(manifest: Manifest) -> Iterator[Component]:
    """What computes in the bundle's base: a text encoder is in bf16 where the rest is in fp16, and all of it has kernels."""
    return (part for name, part in manifest.components.items() if name != "text_encoder")
