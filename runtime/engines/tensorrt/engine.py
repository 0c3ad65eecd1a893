"""TensorRT's two kinds as engines of reelquant: graphs are compiled ahead to files, for chosen GPUs and sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from types import MappingProxyType, ModuleType
from typing import Any

from reelquant.runtime.bundle import ENGINES, Bundle
from reelquant.runtime.bundle.manifest import Manifest
from reelquant.runtime.bundle.support import BASES, Support
from reelquant.runtime.bundle.trust import check_trust
from reelquant.runtime.engines.device_memory import ClipMemory
from reelquant.runtime.engines.engine import REFERENCE_ENGINE, Engine, EngineReport, PlanEntry, one_line
from reelquant.runtime.engines.memory import EngineMemory, MemoryModel
from reelquant.runtime.engines.options import BuildSpec, EngineOptions
from reelquant.runtime.engines.session import Session
from reelquant.runtime.engines.tensorrt import stage
from reelquant.runtime.engines.tensorrt.cuda import CudaRuntime
from reelquant.runtime.engines.tensorrt.device import Device
from reelquant.runtime.engines.tensorrt.flavor import RTX, STANDARD, Flavor
from reelquant.runtime.engines.tensorrt.graph_tools import lint
from reelquant.runtime.engines.tensorrt.loadable import why_not
from reelquant.runtime.engines.tensorrt.loader import TensorRtLoader
from reelquant.runtime.engines.tensorrt.memory import RANGE, clip_memory
from reelquant.runtime.engines.tensorrt.session import EngineFile, TensorRtSession
from reelquant.runtime.engines.tensorrt.targets import check_targets, lacking, unsupported
from reelquant.runtime.errors import BadInput, EngineError
from reelquant.runtime.files.user_cache import user_cache
from reelquant.runtime.machine.cards import CONTEXT
from reelquant.runtime.machine.gpus import gpus
from reelquant.runtime.models.cogvideox.stages import Stage
from reelquant.runtime.progress import SILENT, Progress
from reelquant.runtime.sizes import Size


class TensorRt(Engine):
    """One flavor of TensorRT; what its sessions share on a GPU is held here, for the whole process."""

    # What its builder says of CogVideoX's own widths in 16 bit (docs/benchmarks.md, "What a GPU's memory holds"); both graphs of a VAE are loaded. The
    # encoder's 0.5 is a guess on the safe side: no encoder was built at a real size.
    device_memory = EngineMemory(
        process=CONTEXT,
        high=MemoryModel(1.02, 0.55),
        quantized=MemoryModel(1.04, 0.55),
        vae={"decoder": MemoryModel(2.1, 0.23), "encoder": MemoryModel(1.05, 0.5)},
        on_device=True,
        tiles=RANGE,
    )
    runs_onnx = False
    quick_to_load = False

    def __init__(self, flavor: Flavor) -> None:
        self.flavor, self.name, self.package = flavor, flavor.engine, flavor.package
        self._devices: dict[int, Device] = {}

    def inspect(self, module: ModuleType) -> EngineReport:
        found = gpus()
        version, devices = str(module.__version__), ", ".join(found.names)
        if not found.names:
            # Only RTX compiles for a GPU that is not here.
            can = "can build engines here, cannot run them" if self.flavor.ahead_of_time else "cannot build or run here"
            remedy = "run on openvino, or on a machine with an NVIDIA GPU and its driver"
            return EngineReport(self.name, False, version, devices, f"{can}: {found.reason}", remedy)
        if refused := unsupported(self.flavor, found):
            return EngineReport(self.name, False, version, devices, refused, "")
        try:
            import_module("cuda.bindings.runtime")
        except Exception as error:  # noqa: BLE001 - a broken package may raise anything
            reason = f"cuda-bindings is missing or broken: {one_line(error)}"
            return EngineReport(self.name, False, version, devices, reason, self.remedy())
        return EngineReport(self.name, True, version, devices, "", "")

    def clip_memory(self, bundle: Bundle, size: Size, tiled: bool, stages: Sequence[Stage]) -> ClipMemory | None:
        return clip_memory(bundle.manifest, self.name, size, tiled, stages)

    def free_memory(self, options: EngineOptions) -> int:
        return self.device(options.device).cuda.memory()[0]

    def device_seconds(self) -> float | None:
        return sum(device.seconds for device in self._devices.values())

    @property
    def accuracy_engine(self) -> str:
        """It runs no ONNX files, and is not on every machine that builds for it."""
        return REFERENCE_ENGINE

    def compute_dtype(self, trained: str) -> str:
        """The 16 bit that the checkpoint was trained in, or bf16, which overflows nowhere."""
        return trained if trained == "fp16" else "bf16"

    def refuses(self, manifest: Manifest) -> str | None:
        record = manifest.engines.get(self.name)
        if record is None:
            return f"it has no {self.name} engines; build them with: reelquant build BUNDLE --engine {self.name} --gpu NAMES"
        return why_not(self.flavor, record, gpus(), self.version())

    def files(self, component: str) -> str:
        return f"{ENGINES}/{self.name}/{component}."

    def check_build(self, spec: BuildSpec, formats: Mapping[str, Support] = MappingProxyType({})) -> None:
        check_targets(spec.gpus, self.flavor)
        stage.current_gpu(spec.gpus, self.flavor)
        if spec.dynamic:
            stage.check_dynamic(formats)
        # A text encoder computes in bf16 wherever the rest is in 16 bit: T5 overflows in fp16.
        wanted = {**formats, "bf16": BASES["bf16"]} if "fp16" in formats else formats
        if fault := lacking(spec.gpus, wanted):
            raise BadInput(f"{fault}; choose other GPUs (--gpu) or another --precision")

    def plan(self, bundle: Bundle, spec: BuildSpec) -> list[PlanEntry]:
        self.check_build(spec)
        return stage.plan(bundle, self.flavor, spec)

    def build(self, bundle: Bundle, spec: BuildSpec, progress: Progress = SILENT) -> Bundle:
        """Compile every graph for every size, but for those that were compiled before and have not changed since."""
        self.check_build(spec)
        for warning in lint(bundle, spec):
            progress.say(warning)
        return stage.build_engines(bundle, self.flavor, spec, progress)

    def open(self, bundle: Bundle, component: str, graph: str, options: EngineOptions, lean: bool = False) -> Session:
        records = stage.find_engines(bundle.manifest, self.flavor, component, graph)
        if reason := self.refuses(bundle.manifest):
            raise EngineError(f"{self.name} cannot run this bundle here: {reason}")
        sums = self._sums(bundle) if component == "transformer" else []
        check_trust(bundle, [str(record["file"]) for record in (*records, *sums)], options.trust)
        files, adding = ([EngineFile.of_record(bundle.path, each) for each in some] for some in (records, sums))
        return TensorRtSession(self.device(options.device), files, adding)

    def _sums(self, bundle: Bundle) -> list[Mapping[str, Any]]:
        """The records of the engines that add up what lies between two runs of the transformer; none of bundles that were built before
        there were any.

        Raises:
            BundleError: a file was changed.
        """
        start = self.files(stage.SUM[0])
        bundle.check_hashes(lambda name: name.startswith(start))
        return stage.records_of(bundle.manifest, self.flavor, *stage.SUM)

    def device(self, number: int) -> Device:
        """This process's share of a GPU.

        Raises:
            MissingExtra: the package or cuda-bindings is not installed.
            EngineError: there is no such GPU, or no driver.
        """
        if number not in self._devices:
            cuda, found = CudaRuntime(number, self.name), gpus()
            if number >= len(found.names):
                raise BadInput(f"there is no GPU {number} here, only {', '.join(found.names)}; see: reelquant doctor")
            gpu = f"{found.names[number]} {found.driver}"
            self._devices[number] = Device(cuda, TensorRtLoader(self.flavor, user_cache("kernels"), gpu))
        return self._devices[number]


rtx = TensorRt(RTX)
standard = TensorRt(STANDARD)
