"""A graph on OpenVINO: compiled for the shapes that it is run with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from reelquant.runtime.engines.engine import run_failed
from reelquant.runtime.engines.openvino import kernels
from reelquant.runtime.engines.openvino.compiled import load_or_compile
from reelquant.runtime.engines.openvino.model import attention_in_bf16, bf16_of, rotate_by_products, with_shapes
from reelquant.runtime.engines.session import BF16_ALL, BF16_ATTENTION, Array, Feeds, HostSession
from reelquant.runtime.machine.memory import give_back_at_once, is_short

_Shapes = tuple[tuple[int, ...], ...]
# Of how many sets of shapes what was compiled is kept: a clip's transformer runs both halves of guidance, or one.
_KEPT = 3


class OpenVinoSession(HostSession):
    """A graph that is compiled for known shapes: more is fused then, and memory is planned for those alone.

    Where ``lean``, what was compiled for other shapes is given up first. Where the graph says that parts of it may be
    computed in bf16, they are on a CPU with units for it. With ``cached`` what is compiled is kept for later processes.
    """

    def __init__(self, graph: Path, threads: int | None, lean: bool, cached: bool = False) -> None:
        self._graph, self._lean, self._cached = graph, lean, cached
        self._options = {**kernels.OPTIONS, **({"INFERENCE_NUM_THREADS": threads} if threads else {})}
        model = kernels.core().read_model(str(graph))
        self.inputs = tuple(_name(port) for port in model.inputs)
        self.outputs = tuple(_name(port) for port in model.outputs)
        self._compiled: dict[_Shapes, Any] = {}  # the last used is the last
        self._requests: dict[_Shapes, Any] = {}  # of those that ran since they were at rest
        if lean:
            give_back_at_once()

    def compute(self, feeds: Feeds, into: Feeds) -> dict[str, Array]:
        arrays = [np.ascontiguousarray(feeds[name]) for name in self.inputs]
        shapes = tuple(array.shape for array in arrays)
        try:
            compiled = self._compiled_for(shapes)
            # A request of its own where results have a place, or its next run would write there too.
            request = compiled.create_infer_request() if into else self._request_of(shapes, compiled)
            for i, name in enumerate(self.outputs):
                if name in into:
                    request.set_output_tensor(i, kernels.module().Tensor(into[name], shared_memory=True))
            results = request.infer(arrays, share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            raise run_failed("OpenVINO", self._graph, error) from error
        # The request owns its output buffers and the next call overwrites them.
        return {
            name: into[name] if name in into else np.array(results[i], order="C", copy=True)
            for i, name in enumerate(self.outputs)
        }

    def rest(self) -> None:
        if not is_short():  # taking it again at each clip costs small ones time
            return
        self._requests.clear()
        for compiled in self._compiled.values():
            compiled.release_memory()

    def try_to_compile(self) -> None:
        """Compile it once, for any shapes, so that a graph that OpenVINO cannot compile is found now.

        Raises:
            RuntimeError: it cannot.
        """
        self._compile(None)

    def _request_of(self, shapes: _Shapes, compiled: Any) -> Any:
        if shapes not in self._requests:
            self._requests[shapes] = compiled.create_infer_request()
        return self._requests[shapes]

    def _compiled_for(self, shapes: _Shapes) -> Any:
        if shapes in self._compiled:
            self._compiled[shapes] = found = self._compiled.pop(shapes)
            return found
        while len(self._compiled) >= (1 if self._lean else _KEPT):
            oldest = next(iter(self._compiled))
            del self._compiled[oldest]
            self._requests.pop(oldest, None)
        if self._cached:
            made = load_or_compile(self._graph, [shapes, self._options, self._lean], lambda: self._compile(shapes))
        else:
            made, _ = self._compile(shapes)
        self._compiled[shapes] = made
        return made

    def _compile(self, shapes: _Shapes | None) -> tuple[Any, dict[str, Any]]:
        model = kernels.core().read_model(str(self._graph))
        options, bf16 = dict(self._options), bf16_of(model) if kernels.multiplies_bf16() else ""
        if kernels.saturates() and kernels.overflows(model):
            options |= kernels.IN_FLOAT
        if shapes is not None:
            with_shapes(model, shapes, inputs_apart=self._lean)
        rotate_by_products(model)
        if bf16 == BF16_ATTENTION:
            attention_in_bf16(model)
        if bf16 == BF16_ALL:
            options["INFERENCE_PRECISION_HINT"] = "bf16"
        return kernels.core().compile_model(model, "CPU", options), options


def _name(port: Any) -> str:
    """The ONNX graph's own name: a tensor that a no-op hands on has several, and ``any_name`` is any of them."""
    name = str(port.get_node().get_friendly_name()).removesuffix("/sink_port_0")
    return name if name in port.get_names() else str(port.any_name)
