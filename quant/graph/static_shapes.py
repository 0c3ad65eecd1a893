"""Shapes of a graph at one size, and a copy of a graph whose inputs have that size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from reelquant.quant.graph.graph_files import load_graph
from reelquant.runtime.errors import BundleError
from reelquant.runtime.symbolic import evaluate


def known_shape(value: ir.Value | None, symbols: Mapping[str, int]) -> tuple[int, ...] | None:
    """The shape of ``value`` with every symbol replaced; None where it has none, or a symbol is not known."""
    if value is None or value.shape is None:
        return None
    sides = [side if isinstance(side, int) else evaluate(str(side.value), symbols) for side in value.shape]
    found = tuple(side for side in sides if side is not None)
    return found if len(found) == len(sides) else None


def static_copy(path: Path, symbols: Mapping[str, int]) -> bytes:
    """The ONNX file at ``path`` with the shapes of its inputs fixed; weights stay in the files it points to.

    TensorRT decides while it parses whether a DequantizeLinear is blocked, and can tell only where shapes are static, so
    NVFP4 graphs need this.

    Raises:
        BundleError: an input has a dimension that ``symbols`` does not give.
    """
    model = load_graph(path)
    for value in model.graph.inputs:
        shape = known_shape(value, symbols)
        if shape is None:
            raise BundleError(f"{path}: the input {value.name} has a dimension that no size gives; export it again")
        value.shape = ir.Shape(shape)
    return bytes(ir.to_proto(model).SerializeToString())
