"""What each layer's quantization does to the transformer's output, under teacher forcing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from reelquant.quant.calibration.ranges import Ranges
from reelquant.quant.evaluation.switches import SWITCHES, add_switches
from reelquant.quant.evaluation.teacher import Step, pooled_rel_l2, velocities
from reelquant.quant.graph.graph_files import load_mapped
from reelquant.quant.graph.scratch_session import scratch_session
from reelquant.quant.passes.insert_qdq import insert_qdq
from reelquant.quant.recipe import Recipe
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.session import Array, Session
from reelquant.runtime.progress import SILENT, Progress


@dataclass(frozen=True, eq=False)
class Probe:
    """A transformer whose quantized ``products`` (linears and attentions, by name) can be switched, and steps to run."""

    products: tuple[str, ...]
    session: Session
    steps: Sequence[Step]
    wanted: Sequence[Array]

    def error(self, quantized: Collection[str]) -> float:
        """Relative L2 of the velocity over all steps with these products quantized and all others high."""
        return pooled_rel_l2(self.run(quantized), self.wanted)

    def errors(self, progress: Progress = SILENT) -> dict[str, float]:
        """:meth:`error` of each product alone."""
        found = {}
        with progress.stage("sensitivity", len(self.products)) as advance:
            for name in self.products:
                found[name] = self.error([name])
                advance()
        return found

    def run(self, quantized: Collection[str]) -> Iterator[Array]:
        switches = np.array([name in quantized for name in self.products])
        return velocities(self.session, self.steps, {SWITCHES: switches})


@contextmanager
def opened_probe(
    bundle: Bundle, ranges: Ranges, recipe: Recipe, steps: Sequence[Step], engine: str, progress: Progress = SILENT
) -> Iterator[Probe]:
    """The probe of ``bundle`` (fp32) quantized by ``recipe``, on ``steps`` of its own."""
    path = bundle.graph("transformer", "main")
    quantized, high = load_mapped(path), load_mapped(path)
    insert_qdq(quantized, ranges, recipe, progress=progress)
    products = tuple(add_switches(quantized, high))
    with scratch_session(quantized, bundle.path, engine) as session:
        # The high run of this very graph, so that only quantization differs, and no engine's order of sums.
        wanted = list(Probe(products, session, steps, ()).run(()))
        yield Probe(products, session, steps, wanted)
