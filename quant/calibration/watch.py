"""Make a bundle's own clips with its transformer watched: what calibration and teacher forcing are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

from reelquant.runtime.bundle.manifest import Defaults
from reelquant.runtime.engines.session import Array, Feeds, Session, Values
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.progress import Progress
from reelquant.runtime.request import Request

# Of one run: the clip's number, what the transformer was fed, and what it answered, of which it may take things out.
See = Callable[[int, Feeds, dict[str, Array]], None]


def at_own_steps(requests: Sequence[Request], defaults: Defaults) -> list[Request]:
    """The same clips, but at the bundle's own steps where its model was distilled to few: at others it is not at home."""
    return [replace(each, steps=None) for each in requests] if defaults.few_steps else list(requests)


def sample_watched(
    pipeline: Pipeline,
    transformer: Session,
    requests: Sequence[Request],
    see: See,
    progress: Progress,
    stage: str,
) -> list[Array]:
    """Sample the clips of ``requests`` with ``transformer`` in the place of ``pipeline``'s, show every run to ``see``, and return
    the clips as scaled latents, none of them decoded.

    Raises:
        BadInput: a request cannot be met.
    """
    watched = _Watched(transformer, see)
    pipeline = pipeline.with_transformer(watched)
    clips = []
    with progress.stage(stage, len(requests)) as advance:
        for number, request in enumerate(requests):
            watched.clip = number
            clips.append(pipeline.sample(request))
            advance()
    return clips


class _Watched(Session):
    def __init__(self, session: Session, see: See) -> None:
        self.inputs, self.outputs = session.inputs, session.outputs
        self.clip, self._session, self._see = 0, session, see

    def run(self, feeds: Values) -> dict[str, Array]:
        results = self._session.run(feeds)
        self._see(self.clip, cast(Feeds, feeds), results)
        return results
