"""The transformer on one clip: latents and a timestep in, velocity out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.engines.session import Array, Session, Values
from reelquant.runtime.engines.sums import Sum
from reelquant.runtime.models.cogvideox.schedulers import Run

Floats = NDArray[np.float32]
_BATCHED = ("text", "image_latents")  # of what is bound, the inputs with a row for each half of guidance


@dataclass(frozen=True, eq=False)
class Conditioning:
    """All that the denoising of one clip starts from.

    ``latents`` are the noise (of a video: the noisy video) float32 [latent_frames, channels, h, w], ``text`` is float32
    [2, text_tokens, text_width], unconditional first, or [1, …] when guidance is off; ``image_latents`` is of the latents'
    shape, for image-to-video; ``fixed`` are the graph's other inputs, the same at every step: positions, and what a
    variant has besides. ``guidance`` gives the scale at a training timestep, ``run`` is the scheduler's way through the steps.
    """

    latents: Floats
    text: Floats
    guidance: Callable[[int], float]
    run: Run
    image_latents: Floats | None = None
    fixed: Mapping[str, Floats] = field(default_factory=dict)


class Denoiser:
    """A transformer with a clip's constants bound: they go to where the engine computes once, and not at every step.

    Conditional and unconditional prediction are one batch of two, or two runs where the engine was built for one row.
    """

    def __init__(
        self,
        session: Session,
        text: Floats,
        image_latents: Floats | None = None,
        fixed: Mapping[str, Floats] | None = None,
    ) -> None:
        """``text`` [batch, text_tokens, text_width]; the others as in :class:`Conditioning`."""
        batch = len(text)
        constants: dict[str, Array] = {"text": text, **(fixed or {})}
        if image_latents is not None:
            constants["image_latents"] = np.repeat(image_latents[None], batch, 0)
        self._session, self._rows, self._constants = session, session.batch or batch, constants
        self._bound = [self._put(i, self._rows) for i in range(0, batch, self._rows)]
        self._halves: dict[int, Values] = {}
        self._velocity: Values = {}  # on a device

    def velocity(self, latents: Any, timestep: int) -> Any:
        """What the transformer predicts of latents [latent_frames, channels, h, w] at a training timestep: float32
        [batch, latent_frames, channels, h, w], unconditional first. Of latents that are a sum on the device, as many sums.

        Raises:
            BadInput: the engine was not built for this size.
            EngineError: it gave up.
        """
        if isinstance(latents, Sum):
            return [self._on_device(bound, latents, timestep) for bound in self._bound]
        rows = [self._run(bound, self._rows, latents, timestep) for bound in self._bound]
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    def half(self, row: int, latents: Any, timestep: int) -> Any:
        """As :meth:`velocity`, but the unconditional (``row`` 0) or conditional (1) prediction alone: float32 [latent_frames,
        channels, h, w].

        An engine that was built for two rows at once computes both all the same.
        """
        if isinstance(latents, Sum):
            return self._on_device(self._bound[row], latents, timestep)
        if self._session.batch == 1:
            return np.asarray(self._run(self._bound[row], 1, latents, timestep)[0])
        if self._session.batch is not None:
            return np.asarray(self._run(self._bound[0], self._rows, latents, timestep)[row])
        if row not in self._halves:
            self._halves[row] = self._put(row, 1)
        return np.asarray(self._run(self._halves[row], 1, latents, timestep)[0])

    def _put(self, first: int, rows: int) -> Values:
        constants = self._constants.items()
        return self._session.put({k: v[first : first + rows] if k in _BATCHED else v for k, v in constants})

    def _on_device(self, bound: Values, latents: Sum, timestep: int) -> Sum:
        """One row, copied: the next run writes over it."""
        adder = latents.adder
        fed = {"latents": adder.fed(latents.array), "timestep": np.full(1, timestep, np.int64)}
        _, self._velocity = self._session.run_keeping({**bound, **fed}, lambda name: True, self._velocity)
        return Sum(adder, latents.shape, [(1.0, adder.copied(self._velocity["velocity"]))])

    def _run(self, bound: Values, rows: int, latents: Floats, timestep: int) -> Floats:
        changing: dict[str, Array] = {
            "latents": np.repeat(latents[None], rows, 0),
            "timestep": np.full(rows, timestep, np.int64),
        }
        return self._session.run({**bound, **changing})["velocity"].astype(np.float32, copy=False)
