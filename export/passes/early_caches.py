"""Let engines compute a stream's caches early, so that what they are cut from is given up early."""

from __future__ import annotations

import onnx_ir as ir

from reelquant.export.trace import cache_output


def compute_caches_early(model: ir.Model) -> int:
    """Order nodes and outputs of a VAE graph for the engines; return how many caches it has.

    A cache is cut from the frames that a convolution reads, and until it is, those stay in memory. Nothing reads a cache,
    so an engine is free to compute it last, and both do: ONNX Runtime begins with the last node in the file that nothing
    reads, and works backwards; OpenVINO follows the order of the outputs. So the caches' nodes are the last in the file,
    the earliest at the end, and the caches are the first outputs. ``python -m benchmarks.memory`` shows what it is worth.
    """
    graph = model.graph
    outputs = list(graph.outputs)
    caches = [value for value in outputs if (value.name or "").startswith(cache_output("cache."))]
    ends = {
        node: None for value in outputs if (node := value.producer()) and not any(o.consumers() for o in node.outputs)
    }
    for node in [node for node in reversed(graph) if node in ends]:
        graph.remove(node)
        graph.append(node)
    graph.outputs.clear()
    graph.outputs.extend([*caches, *(value for value in outputs if value not in caches)])
    return len(caches)
