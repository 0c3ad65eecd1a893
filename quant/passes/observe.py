"""Make a graph report statistics of chosen tensors, so that calibration moves these and no tensors.

One pass is enough: a histogram's bins lie on a logarithmic scale, and so do not wait for the range.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from reelquant.quant.calibration.channels import BINS, LOWEST_OCTAVE, OCTAVE, blocks_of
from reelquant.quant.calibration.ranges import CHANNEL, HIGH, HISTOGRAM, LOW


def observe(
    model: ir.Model,
    tensor_names: Iterable[str],
    channels: Mapping[str, int] | None = None,
    histograms: bool = True,
) -> int:
    """Add outputs for every tensor [batch, …], and return how many tensors: ``<name>::low`` and ``<name>::high`` [batch],
    ``<name>::histogram`` int64 [BINS] where ``histograms`` are wanted (they take several times a tensor's memory).

    Those in ``channels``, tensors [batch, …, K] by their K, report each channel too: ``<name>::channel_low``, ``_high``,
    ``_mean`` [K] over the run's rows, and ``_second``, the *sum* of products over the rows [blocks, K/blocks, K/blocks].
    A name given twice, as by linears that share an activation, is observed once.

    Raises:
        ValueError: the graph computes no tensor of such a name.
    """
    graph = model.graph
    values = {value.name: value for value in graph.inputs}
    values |= {value.name: value for node in graph for value in node.outputs}
    names = list(dict.fromkeys(tensor_names))
    if unknown := [name for name in names if name not in values]:
        raise ValueError(f"the graph has no tensor named {unknown[0]!r} to observe")
    observer = _Observer(graph)
    for name in names:
        value = values[name]
        observer.samples(name, value)
        if histograms:
            observer.histogram(name, value)
        if channels and name in channels:
            observer.channels(name, value, channels[name])
    return len(names)


class _Observer:
    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph

    def samples(self, name: str, value: ir.Value) -> None:
        # Flattened to [batch, -1] first, so that one pair of constants serves every rank.
        flat = self._op("Reshape", f"{name}::rows", value, self._integers("rows", [0, -1]))
        batch = ir.Shape(value.shape[:1] if value.shape is not None else [None])
        for suffix, op in ((LOW, "ReduceMin"), (HIGH, "ReduceMax")):
            self._report(op, name + suffix, flat, self._integers("1", [1]), shape=batch, dtype=value.dtype, keepdims=0)

    def histogram(self, name: str, value: ir.Value) -> None:
        """floor(16 · log2|x|) counts from the lowest octave; zero goes into the first bin."""

        def op(kind: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
            return self._op(kind, f"{name}::{kind.lower()}", *inputs, **attributes)

        tiny = self._constant("tiny", np.float32(2.0**LOWEST_OCTAVE))
        logarithm = op("Log", op("Max", op("Abs", op("Reshape", value, self._integers("all", [-1]))), tiny))
        octaves = op("Mul", logarithm, self._constant("per_octave", np.float32(OCTAVE / np.log(2))))
        place = op("Floor", op("Sub", octaves, self._constant("lowest", np.float32(OCTAVE * LOWEST_OCTAVE))))
        last = (self._constant("first_bin", np.float32(0)), self._constant("last_bin", np.float32(BINS - 1)))
        bins = op("Cast", op("Clip", place, *last), to=ir.DataType.INT64.value)
        ones = op("Expand", self._integers("1", [1]), op("Shape", bins))
        none = self._integers("no_counts", [0] * BINS)
        self._report(
            "ScatterElements", name + HISTOGRAM, none, bins, ones,
            shape=ir.Shape([BINS]), dtype=ir.DataType.INT64, axis=0, reduction="add",
        )  # fmt: skip

    def channels(self, name: str, value: ir.Value, count: int) -> None:
        rows = self._op("Reshape", f"{name}::tokens", value, self._integers(f"tokens_{count}", [-1, count]))
        for part, op in (("low", "ReduceMin"), ("high", "ReduceMax"), ("mean", "ReduceMean")):
            output = f"{name}{CHANNEL}{part}"
            self._report(
                op, output, rows, self._integers("0", [0]), shape=ir.Shape([count]), dtype=value.dtype, keepdims=0
            )
        blocks = blocks_of(count)
        side = count // blocks
        blocked = self._integers(f"blocks_{count}", [-1, blocks, side])
        cut = self._op("Reshape", f"{name}::blocks", rows, blocked)
        left = self._op("Transpose", f"{name}::left", cut, perm=[1, 2, 0])
        right = self._op("Transpose", f"{name}::right", cut, perm=[1, 0, 2])
        shape = ir.Shape([blocks, side, side])
        self._report("MatMul", f"{name}{CHANNEL}second", left, right, shape=shape, dtype=value.dtype)

    def _op(self, kind: str, name: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        node = ir.node(kind, list(inputs), attributes, name=name)
        node.outputs[0].name = name
        self._graph.append(node)
        return node.outputs[0]

    def _report(
        self, kind: str, name: str, *inputs: ir.Value, shape: ir.Shape, dtype: ir.DataType | None, **attributes: Any
    ) -> None:
        output = ir.val(name, dtype, shape)
        self._graph.append(ir.node(kind, list(inputs), attributes, outputs=[output], name=name))
        self._graph.outputs.append(output)

    def _integers(self, name: str, numbers: list[int]) -> ir.Value:
        return self._constant(name, np.array(numbers, np.int64))

    def _constant(self, name: str, array: NDArray[Any] | np.generic) -> ir.Value:
        name = f"observe_{name}"
        if name not in self._graph.initializers:
            self._graph.register_initializer(ir.val(name, const_value=ir.tensor(np.asarray(array), name=name)))
        return self._graph.initializers[name]
