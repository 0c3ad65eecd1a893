"""Open a graph that was made for one purpose and is thrown away after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from reelquant.quant.blockwise import blockwise
from reelquant.quant.graph_files import WEIGHTS, save_graphs
from reelquant.runtime.atomic import link_or_copy, scratch_folder
from reelquant.runtime.engine import Plan, open_plan
from reelquant.runtime.engine_memory import ENGINE_MEMORY
from reelquant.runtime.memory import available_memory

_SPARE = 2 << 30  # for activations and everything else


@contextmanager
def scratch_plan(model: ir.Model, beside: Path, engine: str, weights: Path | None = None) -> Iterator[Plan]:
    """Write ``model`` into a scratch folder beside ``beside`` and open it; ``weights`` are linked if all of its own lie there.

    Where its weights would take most of the memory that is left, it runs one block at a time.
    """
    # Beside the bundle: on the same disk the weights can be linked, and need not be copied.
    with scratch_folder(beside, "scratch") as folder:
        path = folder / "graph" / "main.onnx"
        if weights is None:
            save_graphs(path.parent, {"main": model})
        else:
            path.parent.mkdir()
            ir.save(model, path)
            link_or_copy(weights, path.parent / WEIGHTS)
        if fits((path.parent / WEIGHTS).stat().st_size, engine):
            yield open_plan(engine, path)
        else:
            with blockwise(path, engine) as plan:
                yield plan


def fits(weights: int, engine: str) -> bool:
    """Whether ``engine`` can hold float32 ``weights`` (bytes) in memory here."""
    available = available_memory()
    return available is None or ENGINE_MEMORY[engine].high.weights * weights + _SPARE < available
