"""Which steps to compute, from recorded clips alone: no network runs.

What the latents come to where steps p and q are computed and none after q is put together as the fit will do it (:mod:`reelquant.quant.schedule.fit`),
but from recorded clips: linear in what was recorded, so that inner products are all that is needed. The worst clip counts: one that
goes another way early is lost. A dynamic programme over the last two computed steps finds those whose errors have the least sum.
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
    """[T + 1, T, T + 1]: how far the latents before step r are from the recorded ones where steps p and q are computed and none between
    q and r, of the worst clip, relative to the norm of its final latents; p of -1 (the last row) is none.
    """
    grams = np.stack([_gram(each) for each in trajectories])
    norms = np.array([np.linalg.norm(each.final.astype(np.float64)) for each in trajectories])
    moves = _moves(trajectories[0])
    pooled, steps, size = grams.sum(0), len(moves), grams.shape[1]
    unit, noisy = np.eye(size), size > 2 * steps + 1
    costs = np.full((steps + 1, steps, steps + 1), np.inf)
    for q in range(steps):
        for p in range(-1, q):
            if (p < 0) != (q == 0):
                continue
            latents = unit[steps + q]
            for i in range(q, steps):
                keep, gain, spread = moves[i]
                rest = keep * latents + (spread * unit[2 * steps + 1 + i] if noisy else 0.0)
                sources = np.stack([unit[q], latents] if p < 0 else [unit[p], unit[q], latents])
                products = sources @ pooled
                inner = products @ sources.T
                ridge = _RIDGE * np.diag(np.diag(inner)) + 1e-12 * np.trace(inner) * np.eye(len(sources))
                wanted = unit[steps + i + 1]
                solved = np.linalg.solve(inner + ridge, products @ (wanted - rest) / gain)
                latents = rest + gain * (solved @ sources)
                error = wanted - latents
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
    """Inner products of what was recorded: guided clean latents of all T steps, T + 1 states, and the noise of each step, if any."""
    guided = (c + d for c, d in zip(trajectory.conditional, trajectory.difference, strict=True))
    matrix = np.stack([*flat(guided), *flat(trajectory.states), *flat(trajectory.noise)])
    return np.asarray(matrix @ matrix.T)


def _moves(trajectory: Trajectory) -> list[tuple[float, float, float]]:
    """Of each step what it keeps of the latents, and what it adds of the clean ones and of noise."""
    run = trajectory.run()
    moves = (run.toward(i, trajectory.final) for i in range(len(run.timesteps)))
    return [(move.keep, move.gain, move.spread) for move in moves]
