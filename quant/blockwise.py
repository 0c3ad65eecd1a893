"""Run a graph one block at a time: slow, since every run loads all weights again, and in the memory of one block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from reelquant.quant.graph_files import load_graph
from reelquant.quant.segments import segments
from reelquant.runtime.engine import Array, Feeds, open_plan


@dataclass(frozen=True)
class BlockwisePlan:
    """A plan (see :class:`reelquant.runtime.engine.Plan`) whose blocks are loaded only while they run.

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

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """As a plan's ``run``."""
        return self.run_all([feeds])[0]

    def run_all(self, samples: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """Run on every one of ``samples``, each block loaded once for all of them."""
        values = [dict(sample) for sample in samples]
        for number, part in enumerate(self.parts):
            self.prepare(self.weights[number])
            plan = open_plan(self.engine, part, lean=True)
            later = frozenset(self.outputs).union(*self.needed[number + 1 :])
            for known in values:
                known.update(plan.run(known))
                for name in known.keys() - later:
                    del known[name]
            del plan
        return [{name: known[name] for name in self.outputs} for known in values]


@contextmanager
def blockwise(
    path: Path, engine: str, prepare: Callable[[Iterable[str]], None] = lambda _: None
) -> Iterator[BlockwisePlan]:
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
        yield BlockwisePlan(inputs, outputs, tuple(parts), tuple(needed), tuple(weights), engine, prepare)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
