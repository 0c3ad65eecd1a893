"""The text encoder with its weights rounded as a bundle stores them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import nn

from reelquant.export.network import Network
from reelquant.export.weights import Rounded
from reelquant.quant.passes.store_weights import LEAST_TABLE, rounded


def stored_as(network: Network, storage: str) -> Network:
    """``network`` with the values that :func:`store_weights` gives its linears and its large tables.

    A graph is traced from this one and compared with this one, so the parity gate stays as strict as for float32.
    """
    weights = dict(network.weights)
    for path, layer in network.module.named_modules():
        table = isinstance(layer, nn.Embedding)
        if isinstance(layer, nn.Linear) or (table and layer.weight.numel() >= LEAST_TABLE):
            name = f"{path}.weight"
            weights[name] = Rounded(weights[name], partial(rounded, storage=storage, table=table))
    return replace(network, weights=weights)
