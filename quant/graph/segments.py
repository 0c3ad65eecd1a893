"""Cut a graph at its blocks and between their halves, so that it can be run part by part in the memory of one."""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx_ir as ir

# A block of CogVideoX, whose second half begins with norm2, or of T5, whose second half is its layer 1.
_BLOCK = re.compile(r"(?:^|\.)(?:transformer_blocks|block)\.(\d+)(?:(\.norm2|\.ff|\.layer\.1)?(?:[./]|$))")


def segments(model: ir.Model) -> Iterator[ir.Model]:
    """Yield models that, run in order with all values handed on by name, compute what ``model`` does.

    A node belongs to the half of the block that its name says (``transformer_blocks.7.attn1.to_q``), or else to the
    latest that it reads from; what comes after the last block stays with it. A graph without blocks is one segment.
    The models share their weights' tensors with ``model``.
    """
    graph = model.graph
    place: dict[ir.Node, int] = {}
    for node in graph:
        found = _BLOCK.search(node.name or "")
        half = 2 * int(found[1]) + bool(found[2]) if found else 0
        sources = [place[producer] for value in node.inputs if value is not None and (producer := value.producer())]
        place[node] = max([half, *sources])
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
        yield ir.Model(part, ir_version=model.ir_version, metadata_props=dict(model.metadata_props))


def _place(value: ir.Value, place: dict[ir.Node, int]) -> int:
    producer = value.producer()
    return -1 if producer is None else place[producer]
