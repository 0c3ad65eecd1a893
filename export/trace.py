"""Module → onnx-ir model: one graph per call, with symbolic sizes."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from reelquant.export.models.cogvideox.modules import plain_convolutions
from reelquant.export.network import Network
from reelquant.export.weights import Weight

OPSET = 21  # the newest at which TensorRT takes FP8 Q/DQ with 16-bit scales; Gelu is native from 20


@dataclass(frozen=True)
class GraphSpec:
    """A graph to trace.

    ``module`` wraps ``network.module``, whose weights are fake. ``axes`` names the symbolic axes of each input, such as ``{"latents": {0: "batch"}}``; all others are fixed.
    ``caches`` is the name of the argument that holds a dict of tensors, whose entries become inputs of their own.
    """

    name: str
    module: nn.Module
    network: Network
    axes: Mapping[str, Mapping[int, str]]
    outputs: tuple[str, ...]

    def weights(self) -> dict[str, Weight]:
        """The network's weights by the names that ``module``, which wraps it, has for them."""
        names = {id(parameter): name for name, parameter in self.network.module.named_parameters()}
        own = self.module.named_parameters(remove_duplicate=False)
        return {name: self.network.weights[names[id(parameter)]] for name, parameter in own}


Inputs = Mapping[str, Tensor]


def trace(spec: GraphSpec, inputs: Inputs) -> ir.Model:
    """Trace ``spec.module`` on example ``inputs``, named and ordered as its arguments are.

    Inputs named ``cache.*`` are handed over together as the module's ``caches``, and the caches it returns become the
    outputs ``next_cache.*``.
    """
    arguments = _arguments(spec.network.fake(inputs))
    dynamic = torch.export.Dim.DYNAMIC
    shapes = _arguments({name: {axis: dynamic for axis in spec.axes.get(name, {})} for name in inputs})
    with _quiet(), torch.no_grad(), plain_convolutions(), spec.network.mode:
        program = torch.onnx.export(
            spec.module.eval(),
            (),
            kwargs=arguments,
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(spec.outputs),
            dynamic_shapes=shapes,
        )
    assert program is not None
    model: ir.Model = program.model
    model.graph.name = spec.name
    model.producer_name = "reelquant"
    _name_axes(model, spec, inputs)
    return model


def _arguments(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments from a graph's inputs: a stream's caches go together as ``caches``."""
    plain = {name: value for name, value in inputs.items() if not name.startswith("cache.")}
    caches = {name: value for name, value in inputs.items() if name not in plain}
    return {**plain, "caches": caches} if caches else plain


def call(spec: GraphSpec, inputs: Inputs) -> dict[str, Tensor]:
    """Run a traced module with its real weights as its graph is run: named inputs in, named outputs out.

    Caches come out as ``next_cache.*``; the others' names are the spec's.
    """
    with torch.no_grad(), spec.network.streamed():
        result = spec.module(**_arguments(inputs))
    if isinstance(result, Tensor):
        return {spec.outputs[0]: result}
    first, new = result
    return {spec.outputs[0]: first, **{cache_output(name): value for name, value in new.items()}}


def cache_output(name: str) -> str:
    """``cache.conv_in`` → ``next_cache.conv_in``: an ONNX value cannot be an input and an output at once."""
    return f"next_{name}"


def _name_axes(model: ir.Model, spec: GraphSpec, inputs: Inputs) -> None:
    """Replace the tracer's symbols (``s48``) by the axes' names, wherever a shape mentions them.

    An axis that several inputs have is named by the first; of a stream's caches, which are smaller where the VAE has
    halved its pictures, the others' are ``height//2`` and so on, as the example ``inputs`` are.
    """
    names: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for value in model.graph.inputs:
        for axis, name in spec.axes.get(value.name or "", {}).items():
            size = inputs[value.name or ""].shape[axis]
            whole = sizes.setdefault(name, size)
            if value.shape is not None and isinstance(value.shape[axis], ir.SymbolicDim):
                symbol = str(value.shape[axis].value)  # type: ignore[union-attr]
                names.setdefault(symbol, name if size == whole else f"{name}//{whole // size}")
    words = re.compile(r"\bs\d+\b")
    values = [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
    for value in values:
        if value.shape is None:
            continue
        value.shape = ir.Shape(
            dim if isinstance(dim, int) else words.sub(lambda m: names.get(m[0], m[0]), str(dim.value))
            for dim in value.shape
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the tracer's remarks that no user can act on (no torchvision, unused kwargs)."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
