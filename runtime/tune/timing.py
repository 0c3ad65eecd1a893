"""Time runs of a transformer so that two of them can be compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence

import numpy as np

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.session import Feeds, Session
from reelquant.runtime.models import model_of
from reelquant.runtime.sizes import Size

_WARM = 2  # the first runs compile, and some engines take memory in their second


def step_feeds(bundle: Bundle, size: Size | None = None) -> Feeds:
    """What one guided step (a batch of two) feeds any transformer like ``bundle``'s: random latents and texts of a clip of
    ``size``, or of the bundle's own.
    """
    manifest, defaults = bundle.manifest, bundle.manifest.defaults
    size = size or defaults.size
    model = model_of(manifest)
    shape = model.geometry.sampled_shape(size)
    rng = np.random.default_rng(0)
    text = (2, manifest.text_tokens, model.text_width)
    return {
        "latents": rng.standard_normal((2, *shape), dtype=np.float32),
        "image_latents": rng.standard_normal((2, *shape), dtype=np.float32),
        "text": rng.standard_normal(text, dtype=np.float32),
        "timestep": np.array([500, 500]),
        **model.constants(bundle, shape),
    }


def in_turns(runs: Mapping[str, tuple[Session, Feeds]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each of ``repeats`` runs, after two that do not count: one of each session after the other, so that what
    else the machine does falls on all of them. Feeds may hold more than a session takes.
    """
    fed = {name: (session, {key: feeds[key] for key in session.inputs}) for name, (session, feeds) in runs.items()}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(_WARM + repeats):
        for name, (session, feeds) in fed.items():
            began = time.perf_counter()
            session.run(feeds)
            if turn >= _WARM:
                taken[name].append(time.perf_counter() - began)
    return taken


def ratios(taken: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """Of times taken in turns: the median of their ratios turn by turn, and the tenth and the ninetieth percentile."""
    found = [one / other for one, other in zip(taken, base, strict=True)]
    low, high = np.quantile(found, [0.1, 0.9])
    return statistics.median(found), float(low), float(high)
