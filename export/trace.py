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

from reelquant.export.modules import plain_convolutions

OPSET = 21  # the newest at which TensorRT takes FP8 Q/DQ with 16-bit scales; Gelu is native from 20


@dataclass(frozen=True)
class GraphSpec:
    """A graph to trace.

    ``axes`` names the symbolic axes of each input, such as ``{"latents": {0: "batch"}}``; all others are fixed.
    ``caches`` is the name of the argument that holds a dict of tensors, whose entries become inputs of their own.
    """

    name: str
    module: nn.Module
    axes: Mapping[str, Mapping[int, str]]
    outputs: tuple[str, ...]


Inputs = Mapping[str, Tensor]


def trace(spec: GraphSpec, inputs: Inputs) -> ir.Model:
    """Trace ``spec.module`` on example ``inputs``, by input name and in the order of its arguments.

    Inputs named ``cache.*`` are handed over together as the module's ``caches``, and the caches it returns become the
    outputs ``next_cache.*``.
    """
    args, caches = split_caches(inputs)
    dynamic = torch.export.Dim.DYNAMIC
    shapes: list[Any] = [{axis: dynamic for axis in spec.axes.get(name, {})} for name in args]
    arguments: list[Any] = list(args.values())
    if caches:
        arguments.append(caches)
        shapes.append({name: {axis: dynamic for axis in spec.axes.get(name, {})} for name in caches})
    with _quiet(), torch.no_grad():
        plain_convolutions()
        program = torch.onnx.export(
            spec.module.eval(),
            (*arguments, {}),  # a dict at the end would be taken for keyword arguments, so there is an empty one
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(spec.outputs),
            dynamic_shapes=tuple(shapes),
        )
    assert program is not None
    model: ir.Model = program.model
    model.graph.name = spec.name
    model.producer_name = "reelquant"
    _name_axes(model, spec)
    return model


def split_caches(inputs: Inputs) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Separate a stream's plain inputs from its caches."""
    plain = {name: value for name, value in inputs.items() if not name.startswith("cache.")}
    return plain, {name: value for name, value in inputs.items() if name not in plain}


def call(module: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """Run a traced module as its graph is run: named inputs in, named outputs out (caches as ``next_cache.*``)."""
    plain, caches = split_caches(inputs)
    with torch.no_grad():
        result = module(*plain.values(), *([caches] if caches else []))
    if isinstance(result, Tensor):
        return {"": result}
    first, new = result
    return {"": first, **{cache_output(name): value for name, value in new.items()}}


def cache_output(name: str) -> str:
    """``cache.conv_in`` → ``next_cache.conv_in``: an ONNX value cannot be an input and an output at once."""
    return f"next_{name}"


def _name_axes(model: ir.Model, spec: GraphSpec) -> None:
    """Replace the tracer's symbols (``s48``) by the axes' names, wherever a shape mentions them."""
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, name in spec.axes.get(value.name or "", {}).items():
            if value.shape is not None and isinstance(value.shape[axis], ir.SymbolicDim):
                names.setdefault(str(value.shape[axis].value), name)  # type: ignore[union-attr]
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
