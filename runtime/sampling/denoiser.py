"""The transformer on one clip, and the loop over its steps: noise in, latents out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.engines.session import Array, Session
from reelquant.runtime.errors import AccuracyError
from reelquant.runtime.models.cogvideox.guidance import combine
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
        self._session, self._rows = session, session.batch or batch
        self._bound = [
            session.put(
                {name: value[i : i + self._rows] if name in _BATCHED else value for name, value in constants.items()}
            )
            for i in range(0, batch, self._rows)
        ]

    def velocity(self, latents: Floats, timestep: int) -> Floats:
        """What the transformer predicts of latents [latent_frames, channels, h, w] at a training timestep: float32
        [batch, latent_frames, channels, h, w], unconditional first.

        Raises:
            BadInput: the engine was not built for this size.
            EngineError: it gave up.
        """
        changing: dict[str, Array] = {
            "latents": np.repeat(latents[None], self._rows, 0),
            "timestep": np.full(self._rows, timestep, np.int64),
        }
        rows = [self._session.run({**bound, **changing})["velocity"] for bound in self._bound]
        return (rows[0] if len(rows) == 1 else np.concatenate(rows)).astype(np.float32, copy=False)


def denoise(transformer: Session, conditioning: Conditioning, advance: Callable[[], None] = lambda: None) -> Floats:
    """Return the latents [latent_frames, channels, h, w] after all of the run's steps.

    Raises:
        AccuracyError: the latents stopped being finite; the message names the step.
    """
    denoiser = Denoiser(transformer, conditioning.text, conditioning.image_latents, conditioning.fixed)
    run, latents = conditioning.run, conditioning.latents
    steps = len(run.timesteps)
    for i, timestep in enumerate(run.timesteps):
        velocity = denoiser.velocity(latents, int(timestep))
        guided = velocity[0]
        if len(velocity) == 2:
            guided = combine(velocity[0], velocity[1], conditioning.guidance(int(timestep)))
        latents = run.step(i, guided, latents)
        if not np.isfinite(latents).all():
            raise AccuracyError(
                f"the latents are not finite after step {i + 1} of {steps}: this precision overflows on this prompt; "
                "try another precision or engine, and report the bundle's manifest"
            )
        advance()
    return latents
