"""Cut a graph at its blocks, so that it can be run block by block in the memory of one."""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx_ir as ir

_BLOCK = re.compile(r"(?:^|\.)(?:transformer_blocks|block)\.(\d+)(?:[./]|$)")


def segments(model: ir.Model) -> Iterator[ir.Model]:
    """Yield models that, run in order with all values handed on by name, compute what ``model`` does.

    A node belongs to the block that its name says (``transformer_blocks.7.attn1.to_q``), or else to the latest block
    that it reads from; what comes after the last block stays with it. A graph without blocks is one segment. The
    models share their weights' tensors with ``model``.
    """
    graph = model.graph
    place: dict[ir.Node, int] = {}
    for node in graph:
        found = _BLOCK.search(node.name or "")
        sources = [place[producer] for value in node.inputs if value is not None and (producer := value.producer())]
        place[node] = max([int(found[1]) if found else 0, *sources])
    last = max(place.values(), default=0)
    for number in range(last + 1):
        inside = [node for node in graph if place[node] == number]
        if not inside:
            continue
        needed = {value: None for node in inside for value in node.inputs if value is not None}
        inputs = [value for value in needed if not value.is_initializer() and _place(value, place) < number]
        outputs = [
            value
            for node in inside
            for value in node.outputs
            if value.is_graph_output() or any(place[user] > number for user in value.consumers())
        ]
        part = ir.convenience.extract(graph, inputs, outputs)
        part.name = f"{graph.name}_{number}"
        part.opset_imports.update(graph.opset_imports)
        yield ir.Model(part, ir_version=model.ir_version)


def _place(value: ir.Value, place: dict[ir.Node, int]) -> int:
    producer = value.producer()
    return -1 if producer is None else place[producer]
