"""Which steps to compute: a few schedules that are worth a trial, from recorded clips alone.

The one of a dynamic programme: what the latents come to where steps p and q are computed and none after q is put together as the fit will do it
(:mod:`reelquant.quant.schedule.fit`), but from what was recorded; that is linear, so that inner products are all that is needed and no network
runs. The worst clip counts: one that goes another way early is lost. The programme finds the steps whose errors have the least sum.

Beside it stand steps at even distances, and the programme's with one half of guidance left out late. How errors grow or fade on the way to
the last step is beyond all of them: a trial says (:mod:`reelquant.quant.schedule.trial`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from reelquant.quant.schedule.trajectories import Trajectory, flat
from reelquant.runtime.sampling.schedule import BOTH, CONDITIONAL, NOTHING, UNCONDITIONAL, rows_of

Costs = NDArray[np.float64]
_RIDGE = 1e-6
_ENDS = ((1, 1), (1, 2), (2, 2), (4, 3))  # how many steps at the beginning and the end are all computed
_LATE = 0.7  # the share of steps of which both halves of guidance are computed, where one is left out after


def candidates(costs: Costs, most: int) -> list[str]:
    """Schedules of at most ``most`` rows, the programme's first; each once."""
    steps, whole = costs.shape[1], max(1, most // 2)
    planned = cheapest_steps(costs, whole)
    found = [planned, _ends_computed(planned), *(spread(steps, whole, *ends) for ends in _ENDS)]
    denser = [cheapest_steps(costs, count) for count in range(whole + 1, min(steps, most) + 1)]
    for half in (CONDITIONAL, UNCONDITIONAL):
        found += [kinds for kinds in (_late_half(each, half) for each in denser) if rows(kinds) <= most][-1:]
    return list(dict.fromkeys(kinds for kinds in found if kinds))


def stretch_costs(trajectories: Sequence[Trajectory]) -> Costs:
    """[T + 1, T, T + 1]: how far the latents before step r are from the recorded ones where steps p and q are computed and none between
    q and r, of the worst clip, relative to the norm of its final latents; p of -1 (the last row) is none.
    """
    grams = np.stack([_gram(each) for each in trajectories])
    norms = np.array([np.linalg.norm(each.final.astype(np.float64)) for each in trajectories])
    steps = len(_moves(trajectories[0]))
    costs = np.full((steps + 1, steps, steps + 1), np.inf)
    stretches = _Stretches(_moves(trajectories[0]), grams.sum(0))
    for q in range(steps):
        for p in range(-1, q):
            if (p < 0) != (q == 0):
                continue
            for i, error in stretches.errors(p, q):
                squares = ((grams @ error) @ error) / norms**2
                costs[p, q, i + 1] = np.sqrt(max(float(squares.max()), 0.0))
    return costs


class _Stretches:
    """``moves`` of each step, and inner products of what was recorded, summed over clips."""

    def __init__(self, moves: Sequence[tuple[float, float, float]], pooled: Costs) -> None:
        self._moves, self._pooled, self._steps = moves, pooled, len(moves)
        self._noisy = len(pooled) > 2 * self._steps + 1

    def errors(self, p: int, q: int) -> Iterator[tuple[int, Costs]]:
        """By what of the recorded arrays the latents after each step i from q on are off where p and q alone were computed."""
        steps, unit = self._steps, np.eye(len(self._pooled))
        latents = unit[steps + q]
        for i in range(q, steps):
            keep, gain, noise = self._moves[i]
            rest = keep * latents + (noise * unit[2 * steps + 1 + i] if self._noisy else 0.0)
            sources = np.stack([unit[q], latents] if p < 0 else [unit[p], unit[q], latents])
            products = sources @ self._pooled
            inner = products @ sources.T
            ridge = _RIDGE * np.diag(np.diag(inner)) + 1e-12 * np.trace(inner) * np.eye(len(sources))
            wanted = unit[steps + i + 1]
            solved = np.linalg.solve(inner + ridge, products @ (wanted - rest) / gain)
            latents = rest + gain * (solved @ sources)
            yield i, wanted - latents


def cheapest_steps(costs: Costs, computed: int) -> str:
    """The kinds of the cheapest schedule that computes so many steps whole, from 1 to all of them."""
    steps = costs.shape[1]
    total = np.full((computed + 1, steps + 1, steps), np.inf)
    came = np.full((computed + 1, steps + 1, steps), -2)
    total[1, -1, 0] = 0.0
    for count in range(1, computed):
        for q in range(steps):
            for p in range(-1, q):
                if not np.isfinite(total[count, p, q]):
                    continue
                sums = total[count, p, q] + costs[p, q, q + 1 : steps]
                better = sums < total[count + 1, q, q + 1 :]
                total[count + 1, q, q + 1 :][better] = sums[better]
                came[count + 1, q, q + 1 :][better] = p
    ends = total[computed] + costs[:, :, steps]
    p, q = (int(each) for each in np.unravel_index(np.argmin(ends), ends.shape))
    chosen = [q]
    for count in range(computed, 1, -1):
        chosen.append(p)
        # p was reached from the step before it; the last row stands for none.
        p, q = int(came[count, p, q]), p
    return _whole(steps, chosen)


def spread(steps: int, computed: int, first: int, last: int) -> str | None:
    """The kinds of a schedule that computes ``first`` steps at the beginning, ``last`` at the end, and the others at even distances
    between; None where so many are not ``computed``.
    """
    if computed < first + last or first + last > steps:
        return None
    between = np.linspace(first - 1, steps - last, computed - first - last + 2)[1:-1]
    return _whole(steps, [*range(first), *(round(float(each)) for each in between), *range(steps - last, steps)])


def rows(kinds: str) -> int:
    """How many rows a schedule computes."""
    return sum(map(rows_of, kinds))


def _whole(steps: int, chosen: Sequence[int]) -> str:
    return "".join(BOTH if i in chosen else NOTHING for i in range(steps))


def _ends_computed(kinds: str) -> str:
    """With the last step computed in place of the one before it."""
    before = kinds.rindex(BOTH)
    return kinds[:before] + NOTHING * (len(kinds) - 1 - before) + BOTH if before > 0 else kinds


def _late_half(kinds: str, half: str) -> str:
    late = int(_LATE * len(kinds))
    return kinds[:late] + kinds[late:].replace(BOTH, half)


def _gram(trajectory: Trajectory) -> Costs:
    """Inner products of what was recorded: guided clean latents of all T steps, T + 1 states, and the noise of each step, if any."""
    matrix = np.stack([*flat(trajectory.guided()), *flat(trajectory.states), *flat(trajectory.noise)])
    return np.asarray(matrix @ matrix.T)


def _moves(trajectory: Trajectory) -> list[tuple[float, float, float]]:
    """Of each step what it keeps of the latents, and what it adds of the clean ones and of noise."""
    run = trajectory.run()
    moves = (run.toward(i, trajectory.final) for i in range(len(run.timesteps)))
    return [(move.keep, move.gain, move.spread) for move in moves]
