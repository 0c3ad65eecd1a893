"""The parity gate: every graph runs on ONNX Runtime beside its torch module before a bundle is finished."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from reelquant.export.models.cogvideox.graphs import Graph
from reelquant.export.trace import GraphSpec, Inputs, call
from reelquant.export.weights import Rounded
from reelquant.quant.graph.blockwise import blockwise
from reelquant.runtime.errors import AccuracyError
from reelquant.runtime.relative_l2 import relative_l2

_LARGE = 2 << 30
TOLERANCE = {"fp32": 1e-4}  # relative L2; fp32 graphs differ from torch by the order of additions only


def check_parity(
    graph: Graph,
    path: Path,
    component: str,
    precision: str = "fp32",
    prepare: Callable[[Iterable[str]], None] = lambda _: None,
) -> dict[str, Any]:
    """Run ``path`` and the torch module on samples and return the worst tensor with its error.

    A network of more than 2 GB is run on the samples it was not traced at, which differ from the traced one in every
    axis: what the trace wrongly kept would be wrong there. ``prepare`` is called with the names of weights before they are
    read from ``path``.

    Raises:
        AccuracyError: an output is further from torch than the precision's tolerance; the message names it.
    """
    chosen = graph.samples if _weight_bytes(graph) <= _LARGE else graph.samples[1:]
    worst = {"tensor": "", "relative_l2": -1.0, "sizes": len(chosen), "tolerance": TOLERANCE[precision]}
    samples = [{name: value.numpy() for name, value in inputs.items()} for inputs in chosen]
    # Beside each other: of a large network both spend most of their time on reading weights.
    with blockwise(path, "onnxruntime", prepare) as plan, ThreadPoolExecutor(1) as other:
        running = other.submit(plan.run_all, samples)
        references = [call(graph.spec, inputs) for inputs in chosen]
        results = running.result()
    for wanted, found in zip(references, results, strict=True):
        for tensor, value in wanted.items():
            error = relative_l2(found[tensor], value.numpy())
            if not error <= float(worst["relative_l2"]):  # type: ignore[arg-type]
                worst.update(tensor=tensor, relative_l2=error, shape=list(value.shape))
    if not float(worst["relative_l2"]) <= TOLERANCE[precision]:  # type: ignore[arg-type]
        raise AccuracyError(
            f"{component}/{graph.spec.name} differs from torch: relative L2 {worst['relative_l2']:.2e} in "
            f"{worst['tensor']} {worst.get('shape')}, allowed {TOLERANCE[precision]:.0e}; "
            "the export stops here, please report the checkpoint and the versions of torch and onnxruntime"
        )
    return worst


def _weight_bytes(graph: Graph) -> int:
    return sum(4 * math.prod(weight.shape) for weight in graph.spec.network.weights.values())


def rounding_error(spec: GraphSpec, inputs: Inputs) -> float:
    """Relative L2 of what ``spec``'s rounded weights give for ``inputs`` against what the weights before it do."""
    weights = spec.network.weights
    exact = {name: weight.weight if isinstance(weight, Rounded) else weight for name, weight in weights.items()}
    wanted = call(replace(spec, network=replace(spec.network, weights=exact)), inputs)
    found = call(spec, inputs)
    return max(relative_l2(found[name].numpy(), value.numpy()) for name, value in wanted.items())
