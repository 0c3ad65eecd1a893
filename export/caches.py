"""What the runtime relies on when it writes a stream's caches in place."""

from __future__ import annotations

import onnx_ir as ir

from reelquant.export.trace import cache_output


def check_in_place(model: ir.Model) -> None:
    """Check that a cache may be written over by its successor: that is computed from all that reads the cache's values.

    Raises:
        ValueError: it is not; the message names the cache.
    """
    outputs = {value.name: value for value in model.graph.outputs}
    for cache in model.graph.inputs:
        successor = outputs.get(cache_output(cache.name or ""))
        if successor is None:
            continue
        behind: set[ir.Node] = set()
        waiting = [successor]
        while waiting:
            node = waiting.pop().producer()
            if node is not None and node not in behind:
                behind.add(node)
                waiting += [value for value in node.inputs if value is not None]
        stray = [
            node.name or node.op_type for node in cache.consumers() if node not in behind and node.op_type != "Shape"
        ]
        if stray or successor is cache:
            raise ValueError(
                f"{cache.name} is read by {', '.join(stray) or 'no node'}, which its successor does not need"
            )
