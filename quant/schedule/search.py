"""Which steps to compute, from recorded clips alone: no network runs.

The forecast of every step from any two before it is fitted on the recorded clips (teacher forcing), and what the forecasts between two
computed steps do to the state at the second is their error, as the sampler adds them up. The worst clip counts: one that goes another
way early is lost. A dynamic programme over the last two computed steps finds those with the least sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reelquant.quant.schedule.trajectories import Trajectory, flat
from reelquant.runtime.sampling.schedule import BOTH, NOTHING

Costs = NDArray[np.float64]
_RIDGE = 1e-6


def stretch_costs(trajectories: Sequence[Trajectory]) -> Costs:
    """[T + 1, T, T + 1]: what it costs to compute steps p and q and then nothing before r, relative to the final latents' norm;
    p of -1 (the last row) is none.
    """
    grams = np.stack([_gram(each) for each in trajectories])
    norms = np.array([np.linalg.norm(each.final.astype(np.float64)) for each in trajectories])
    keep, gain = _moves(trajectories[0])
    pooled, steps = grams.sum(0), len(keep)
    ridge = _RIDGE * np.trace(pooled[:steps, :steps]) / steps
    costs = np.full((steps + 1, steps, steps + 1), np.inf)
    for q in range(steps):
        for p in range(-1, q):
            if (p < 0) != (q == 0):
                continue
            error = np.zeros(2 * steps)
            costs[p, q, q + 1] = 0.0
            for i in range(q + 1, steps):
                sources = [q, steps + i] if p < 0 else [p, q, steps + i]
                solved = np.linalg.solve(
                    pooled[np.ix_(sources, sources)] + ridge * np.eye(len(sources)), pooled[sources, i]
                )
                error *= keep[i]
                error[i] += gain[i]
                error[sources] -= gain[i] * solved
                squares = np.einsum("k,ckl,l->c", error, grams, error, optimize=True)
                costs[p, q, i + 1] = np.sqrt(np.maximum(squares, 0.0) / norms**2).max()
    return costs


def best_kinds(costs: Costs, computed: int) -> str:
    """The kinds of the cheapest schedule that computes so many steps, from 1 to all of them."""
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
    return "".join(BOTH if i in chosen else NOTHING for i in range(steps))


def _gram(trajectory: Trajectory) -> Costs:
    """Inner products of the guided clean latents of all steps and the states before them, [2T, 2T]."""
    guided = (c + d for c, d in zip(trajectory.conditional, trajectory.difference, strict=True))
    matrix = np.stack([*flat(guided), *flat(trajectory.states[:-1])])
    return np.asarray(matrix @ matrix.T)


def _moves(trajectory: Trajectory) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What a step keeps of the latents, and what it adds of the clean ones."""
    run, keep, gain = trajectory.run(), [], []
    for i in range(len(run.timesteps)):
        move = run.toward(i, np.ones_like(trajectory.final))
        gain.append(move.gain)
        keep.append(move.keep)
    return np.array(keep), np.array(gain)
