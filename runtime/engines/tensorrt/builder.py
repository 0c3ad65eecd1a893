"""ONNX graph → engine: one strongly typed path for TensorRT 10.16, 11 and RTX.

Precision lives in the graph, so no precision flag is set and nothing here depends on an enum's number: 10.16 and 11.4
number them differently.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reelquant.runtime.engines.options import BuildSpec
from reelquant.runtime.engines.tensorrt.device import ITEM_BYTES, Shape
from reelquant.runtime.engines.tensorrt.flavor import Flavor
from reelquant.runtime.engines.tensorrt.shapes import Profile, dimension
from reelquant.runtime.errors import BundleError, EngineError

StepDone = Callable[[str, int, int], bool]  # phase, step, of how many → whether to go on


@dataclass(frozen=True)
class Built:
    """An engine's bytes, the least and most shape of each input, the most bytes of each input and output, and the builder's log
    at level INFO with its list of layers.
    """

    engine: memoryview
    inputs: dict[str, tuple[Shape, Shape]]
    tensor_bytes: dict[str, int]
    log: list[str]
    seconds: float


@dataclass
class BuildLog:
    """What a builder said, in order; errors apart."""

    lines: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def why(self) -> str:
        return " ".join((self.errors or self.lines or ["it gave no reason"])[-1].split())[:600]


def build_engine(
    flavor: Flavor,
    graph: Path,
    profile: Profile,
    spec: BuildSpec,
    step: StepDone = lambda *_: True,
    onnx: bytes | None = None,
) -> Built:
    """Compile ``graph`` for shapes of ``profile``, for the GPUs of ``spec``; ``step`` hears of progress and can stop the build.

    ``onnx`` is read in the place of the file ``graph``, beside which its weights are.

    Raises:
        MissingExtra: the flavor's package is not installed.
        BundleError: the parser or the builder refuses the graph; the message is theirs.
        KeyboardInterrupt: ``step`` said to stop.
    """
    trt = flavor.module()
    log = BuildLog()
    logger = _logger(trt, log)
    try:
        builder = trt.Builder(logger)
    except (RuntimeError, TypeError) as error:  # the binding's constructor returned nothing: no GPU or driver
        raise EngineError(f"{flavor.engine} cannot build here: {log.why()}; see: reelquant doctor") from error
    if spec.threads:
        builder.max_threads = spec.threads
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not (parser.parse_from_file(str(graph)) if onnx is None else parser.parse(onnx, str(graph))):
        reasons = [parser.get_error(i) for i in range(parser.num_errors)]
        said = "; ".join(f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in reasons)
        raise BundleError(f"{flavor.engine} {flavor.version()} cannot read {graph}: {said or log.why()}")
    config = builder.create_builder_config()
    config.builder_optimization_level = spec.level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default: float32 would be computed with 10 bits of mantissa
    monitor = _monitor(trt, step)
    config.progress_monitor = monitor
    if flavor.ahead_of_time:
        config.num_compute_capabilities = len(spec.gpus)
        for i, name in enumerate(spec.gpus):
            config.set_compute_capability(getattr(trt.ComputeCapability, name.upper()), i)
    inputs, tensor_bytes = _set_shapes(builder, network, config, profile)
    began = time.monotonic()
    plan = builder.build_serialized_network(network, config)
    if monitor.stopped:
        raise KeyboardInterrupt
    if plan is None:
        raise BundleError(f"{flavor.engine} {flavor.version()} cannot build {graph}: {log.why()}")
    return Built(memoryview(plan), inputs, tensor_bytes, log.lines, time.monotonic() - began)


def _set_shapes(
    builder: Any, network: Any, config: Any, profile: Profile
) -> tuple[dict[str, tuple[Shape, Shape]], dict[str, int]]:
    """Static shapes become the network's own; others go into one optimization profile. Return each input's range, and the bytes of
    every input and output at the most of it.
    """
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    symbolic = {tensor.name: tuple(tensor.shape) for tensor in inputs}
    ranges = {
        tensor.name: [_shape(tensor, symbols) for symbols in (profile.least, profile.usual, profile.most)]
        for tensor in inputs
    }
    for tensor in inputs:
        tensor.shape = ranges[tensor.name][2]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]  # whose shapes are known now
    tensor_bytes = {tensor.name: _bytes(tensor) for tensor in (*inputs, *outputs)}
    optimization = None
    for tensor in inputs:
        least, _, most = ranges[tensor.name]
        if least == most:
            continue
        tensor.shape = symbolic[tensor.name]
        optimization = optimization or builder.create_optimization_profile()
        optimization.set_shape(tensor.name, *ranges[tensor.name])
    if optimization is not None:
        config.add_optimization_profile(optimization)
    return {name: (least, most) for name, (least, _, most) in ranges.items()}, tensor_bytes


def _bytes(tensor: Any) -> int:
    return ITEM_BYTES[tensor.dtype.name] * math.prod(map(int, tensor.shape))


def _shape(tensor: Any, symbols: Any) -> Shape:
    return tuple(
        size if size >= 0 else dimension(tensor.get_dimension_name(axis) or "", symbols)
        for axis, size in enumerate(tensor.shape)
    )


def _logger(trt: Any, log: BuildLog) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.Logger.ERROR, trt.Logger.INTERNAL_ERROR):
                log.errors.append(message)
            elif severity in (trt.Logger.INFO, trt.Logger.WARNING) or message.startswith("Layers:"):
                log.lines.append(message)

    return Logger()


def _monitor(trt: Any, step: StepDone) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.sizes: dict[str, int] = {}
            self.stopped = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            # Inner phases come and go in thousands; the outermost says how far the build is.
            if parent_phase is None:
                self.sizes[phase_name] = num_steps

        def step_complete(self, phase_name: str, step_number: int) -> bool:
            try:
                if phase_name in self.sizes and not step(phase_name, step_number + 1, self.sizes[phase_name]):
                    self.stopped = True
            except KeyboardInterrupt:  # must not leave through the builder's own frames
                self.stopped = True
            return not self.stopped

        def phase_finish(self, phase_name: str) -> None:
            self.sizes.pop(phase_name, None)

    return Monitor()
