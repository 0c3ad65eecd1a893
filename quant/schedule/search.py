"""Which steps to compute, and which half of guidance there, from recorded clips alone: no network runs.

What the latents come to between two computed steps is put together as the fit will do it (:mod:`reelquant.quant.schedule.fit`), but from
what was recorded: it is linear in that, so that inner products are all that is needed. At each computed step the error of the worst clip
counts (a clip that goes another way early is lost), and the recorded latents are gone on from. The sum is what a schedule costs.

From the schedule that computes everything, rows are taken away one by one, each time those that cost least; then rows are moved as long as
that costs less.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from reelquant.quant.schedule.trajectories import Trajectory, flat
from reelquant.runtime.sampling.schedule import BOTH, CONDITIONAL, KINDS, NOTHING, UNCONDITIONAL, rows_of

Vector = NDArray[np.float64]
_RIDGE = 1e-6


class Costs:
    """What schedules of some recorded clips cost, relative to the norm of the final latents."""

    def __init__(self, trajectories: Sequence[Trajectory], order: int) -> None:
        self.order, self.moves = order, _moves(trajectories[0])
        self.steps = len(self.moves)
        self._grams = np.stack([_gram(each) for each in trajectories])
        self._norms = np.array([np.linalg.norm(each.final.astype(np.float64)) for each in trajectories])
        self._pooled = self._grams.sum(0)
        self._known: dict[tuple[int, tuple[int, ...], tuple[int, ...]], list[float]] = {}

    def of(self, kinds: str) -> float:
        """The sum over the stretches between computed steps."""
        computed = [i for i, kind in enumerate(kinds) if kind != NOTHING]
        conditional: tuple[int, ...] = ()
        unconditional: tuple[int, ...] = ()
        total = 0.0
        for i, end in zip(computed, [*computed[1:], self.steps], strict=True):
            if kinds[i] in (BOTH, CONDITIONAL):
                conditional = (i, *conditional)[: self.order]
            if kinds[i] in (BOTH, UNCONDITIONAL):
                unconditional = (i, *unconditional)[: self.order]
            total += self._stretch(i, conditional, unconditional)[end - i - 1]
        return total

    def _stretch(self, start: int, conditional: tuple[int, ...], unconditional: tuple[int, ...]) -> list[float]:
        """The worst clip's error before each later step where none is computed after ``start``."""
        key = (start, conditional, unconditional)
        if key not in self._known:
            self._known[key] = list(self._errors(*key))
        return self._known[key]

    def _errors(self, start: int, conditional: tuple[int, ...], unconditional: tuple[int, ...]) -> Iterator[float]:
        steps, size = self.steps, self._pooled.shape[0]
        places = [*conditional, *(steps + i for i in unconditional)]
        latents = _unit(size, 2 * steps + start)
        for i in range(start, steps):
            keep, gain, spread = self.moves[i]
            rest = keep * latents
            if size > 3 * steps + 1:
                rest[3 * steps + 1 + i] += spread
            wanted = _unit(size, 2 * steps + i + 1)
            # The arrays are unit vectors but for the latents, so their products are rows of the inner products.
            mixed = self._pooled @ latents
            inner = np.empty((len(places) + 1, len(places) + 1))
            inner[:-1, :-1] = self._pooled[np.ix_(places, places)]
            inner[-1, :-1] = inner[:-1, -1] = mixed[places]
            inner[-1, -1] = latents @ mixed
            aim = self._pooled @ (wanted - rest) / gain
            ridge = np.diag(_RIDGE * np.diag(inner) + 1e-12 * np.trace(inner))
            solved = np.linalg.solve(inner + ridge, np.append(aim[places], latents @ aim))
            latents = rest + gain * solved[-1] * latents
            latents[places] += gain * solved[:-1]
            error = wanted - latents
            squares = ((self._grams @ error) @ error) / self._norms**2
            yield float(np.sqrt(max(float(squares.max()), 0.0)))


def pruned(costs: Costs) -> dict[int, str]:
    """A schedule for each number of rows that taking rows away came by, from all to the two of the first step."""
    kinds = BOTH * costs.steps
    found = {rows(kinds): kinds}
    while rows(kinds) > 2:
        now = costs.of(kinds)
        trials = [
            changed(kinds, i, kind)
            for i in range(1, costs.steps)
            for kind in KINDS
            if rows_of(kind) < rows_of(kinds[i])
        ]
        kinds = min(trials, key=lambda trial: (costs.of(trial) - now) / (rows(kinds) - rows(trial)))
        found[rows(kinds)] = kinds
    return found


def refined(costs: Costs, kinds: str) -> str:
    """The schedule after rows were moved, and halves exchanged, until no such change makes it cheaper."""
    best = costs.of(kinds)
    better = True
    while better:
        better = False
        for trial in _moved(kinds):
            cost = costs.of(trial)
            if cost < best * (1 - 1e-6):
                kinds, best, better = trial, cost, True
                break
    return kinds


def best_kinds(costs: Costs, most: int, found: dict[int, str] | None = None) -> str:
    """The cheapest schedule of at most ``most`` rows that the search finds; ``found`` is what :func:`pruned` found."""
    found = found or pruned(costs)
    return refined(costs, found[max(count for count in found if count <= max(2, most))])


def rows(kinds: str) -> int:
    """How many rows a schedule computes."""
    return sum(map(rows_of, kinds))


def changed(kinds: str, i: int, kind: str) -> str:
    return kinds[:i] + kind + kinds[i + 1 :]


def _moved(kinds: str) -> Iterator[str]:
    """Schedules of as many rows that differ in one step or two."""
    for i in range(1, len(kinds)):
        for kind in (CONDITIONAL, UNCONDITIONAL):
            if rows_of(kinds[i]) == 1 and kind != kinds[i]:
                yield changed(kinds, i, kind)
        for fewer in KINDS:
            taken = rows_of(kinds[i]) - rows_of(fewer)
            if taken <= 0:
                continue
            without = changed(kinds, i, fewer)
            for j in range(1, len(kinds)):
                for more in KINDS:
                    if j != i and rows_of(more) - rows_of(kinds[j]) == taken:
                        yield changed(without, j, more)


def _unit(size: int, place: int) -> Vector:
    made = np.zeros(size)
    made[place] = 1.0
    return made


def _gram(trajectory: Trajectory) -> Vector:
    """Inner products of what was recorded: clean latents of all T steps by both halves, T + 1 states, and each step's noise, if any."""
    made = trajectory
    matrix = np.stack([*flat(made.conditional), *flat(made.unconditional), *flat(made.states), *flat(made.noise)])
    return np.asarray(matrix @ matrix.T)


def _moves(trajectory: Trajectory) -> list[tuple[float, float, float]]:
    """Of each step what it keeps of the latents, and what it adds of the clean ones and of noise."""
    run = trajectory.run()
    moves = (run.toward(i, trajectory.final) for i in range(len(run.timesteps)))
    return [(move.keep, move.gain, move.spread) for move in moves]
