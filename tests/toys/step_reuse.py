"""Whole-step reuse: every second step takes the velocity of the step before it, so that half of the forwards are left out.

A session in the place of the transformer is all that it needs: ``pipeline.with_transformer(EverySecondStep(session))``.
"""

from __future__ import annotations

from reelquant.runtime.engines.session import Array, Feeds, Session, Values


class EverySecondStep(Session):
    """A transformer that computes at the first step of each pair, and answers the second with what it said then."""

    def __init__(self, session: Session) -> None:
        self._session, self.inputs, self.outputs, self.batch = session, session.inputs, session.outputs, session.batch
        self._timestep, self._steps, self.forwards = -1, 0, 0
        self._said: list[dict[str, Array]] = []

    def put(self, feeds: Feeds) -> Values:
        return self._session.put(feeds)

    def run(self, feeds: Values) -> dict[str, Array]:
        timestep = int(feeds["timestep"][0])  # type: ignore[index]
        if timestep != self._timestep:  # else the other half of guidance, on an engine that takes one row
            self._timestep, self._steps, self._row = timestep, self._steps + 1, 0
        if self._steps % 2:
            self._said[self._row :] = [self._session.run(feeds)]
            self.forwards += 1
        said = self._said[self._row]
        self._row += 1
        return {name: value.copy() for name, value in said.items()}
