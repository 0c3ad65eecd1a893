"""Run a graph one block at a time: slow, since every run loads all weights again, and in the memory of one block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from reelquant.quant.graph.graph_files import load_graph
from reelquant.quant.graph.segments import segments
from reelquant.runtime.engines.registry import open_onnx
from reelquant.runtime.engines.session import Array, Session, Values


@dataclass(frozen=True)
class BlockwiseSession(Session):
    """A session whose blocks are loaded only while they run.

    ``needed`` are the values that each of ``parts`` reads, ``weights`` the initializers that it has, which ``prepare`` is
    called with before the part is loaded.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parts: tuple[Path, ...]
    needed: tuple[frozenset[str], ...]
    weights: tuple[frozenset[str], ...]
    engine: str
    prepare: Callable[[Iterable[str]], None]

    def run(self, feeds: Values) -> dict[str, Array]:
        return self.run_all([{name: np.asarray(value) for name, value in feeds.items()}])[0]

    def run_all(self, samples: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """Run on every one of ``samples``, each block loaded once for all of them."""
        values = [dict(sample) for sample in samples]
        for number, part in enumerate(self.parts):
            self.prepare(self.weights[number])
            session = open_onnx(self.engine, part, lean=True)
            later = frozenset(self.outputs).union(*self.needed[number + 1 :])
            for known in values:
                known.update(session.run(known))
                for name in known.keys() - later:
                    del known[name]
            del session
        return [{name: known[name] for name in self.outputs} for known in values]


@contextmanager
def blockwise(
    path: Path, engine: str, prepare: Callable[[Iterable[str]], None] = lambda _: None
) -> Iterator[BlockwiseSession]:
    """Cut the graph ``path`` at its blocks, into files beside it that are there while this lasts."""
    model = load_graph(path)
    inputs = tuple(value.name or "" for value in model.graph.inputs)
    outputs = tuple(value.name or "" for value in model.graph.outputs)
    parts: list[Path] = []
    needed: list[frozenset[str]] = []
    weights: list[frozenset[str]] = []
    try:
        for number, segment in enumerate(segments(model)):
            parts.append(path.with_name(f"{path.stem}.{number}.part"))
            ir.save(segment, parts[-1])
            needed.append(frozenset(value.name or "" for value in segment.graph.inputs))
            weights.append(frozenset(segment.graph.initializers))
        yield BlockwiseSession(inputs, outputs, tuple(parts), tuple(needed), tuple(weights), engine, prepare)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
