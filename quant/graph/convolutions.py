"""Find the convolutions of a VAE graph whose products are worth 8 bit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

# What a decoder reads and what it draws: few products, and every error of theirs is seen.
_ENDS = ("conv_in.", "conv_out.")


@dataclass(frozen=True)
class Convolution:
    """``activation`` and ``filters`` are value names: what is convolved, and the initializer [out, in, …]."""

    node: ir.Node
    name: str
    activation: str
    filters: str


def is_quantized(name: str, points: Iterable[int]) -> bool:
    """Of the convolution ``name``, as the decoder calls it; ``points`` are its filters' lengths in time and space."""
    return max(points, default=1) > 1 and not name.startswith(_ENDS)


def convolution_nodes(model: ir.Model) -> list[Convolution]:
    """The 2D and 3D convolutions of the main graph, in its order, without the first, the last and those of one point: a
    spatial norm's, which scale everything and take next to no time.
    """
    found = []
    for node in model.graph:
        activation, filters = (*node.inputs[:2], None, None)[:2]
        if node.op_type != "Conv" or activation is None or filters is None or not filters.is_initializer():
            continue
        name, points = node.name or "", filters.shape.numpy()[2:] if filters.shape is not None else ()
        if is_quantized(name, points):
            found.append(Convolution(node, name, activation.name or "", filters.name or ""))
    return found
