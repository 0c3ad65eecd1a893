"""Open a graph that was made for one purpose and is thrown away after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from reelquant.quant.graph.blockwise import blockwise
from reelquant.quant.graph.graph_files import WEIGHTS, save_graphs
from reelquant.runtime.engines.registry import get_engine, open_onnx
from reelquant.runtime.engines.session import Session
from reelquant.runtime.files.atomic import link_or_copy, scratch_folder
from reelquant.runtime.machine.memory import available_memory

_SPARE = 2 << 30  # for activations and everything else


@contextmanager
def scratch_session(model: ir.Model, beside: Path, engine: str, weights: Path | None = None) -> Iterator[Session]:
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
            yield open_onnx(engine, path)
        else:
            with blockwise(path, engine) as session:
                yield session


def fits(weights: int, engine: str) -> bool:
    """Whether ``engine`` can hold float32 ``weights`` (bytes) in memory here."""
    available, held = available_memory(), get_engine(engine).memory
    # An engine that nobody has measured is taken to hold what it maps, and a copy.
    return available is None or (held.high.weights if held else 2) * weights + _SPARE < available
