"""Put the convolutions of a VAE graph into INT8: Q/DQ before them, and filters stored in 8 bit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from reelquant.quant.formats import INT8, INT8_REDUCED
from reelquant.quant.graph.convolutions import convolution_nodes
from reelquant.quant.methods.primitives import scale_from_absmax
from reelquant.quant.passes.qdq import QdqInserter


def quantize_convolutions(model: ir.Model, largest: Mapping[str, float]) -> int:
    """Quantize, in place, the convolutions of the float32 ``model`` that :func:`convolution_nodes` finds; return how many.

    ``largest`` is the largest magnitude that each is fed, by its name.

    Raises:
        BundleError: a filter has an infinity or a NaN.
    """
    inserter = QdqInserter(model.graph, "fp32")
    found = convolution_nodes(model)
    for each in found:
        scale = scale_from_absmax(np.float32(largest[each.name]), INT8)
        inserter.activation(each.node, 0, each.activation, scale, INT8)
        inserter.filters(each.node, each.filters, INT8_REDUCED)
    inserter.remove_unused_weights()
    return len(found)
