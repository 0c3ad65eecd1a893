"""The transformer on one clip: rows and batches, constants that are bound once, and what is not finite."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from reelquant.runtime.engines.session import Array, Feeds, Session, Values
from reelquant.runtime.errors import AccuracyError
from reelquant.runtime.models.cogvideox.schedulers import scheduler_from_config
from reelquant.runtime.sampling.denoise import denoise
from reelquant.runtime.sampling.denoiser import Conditioning, Denoiser

RNG = np.random.default_rng(0)
SHAPE = (3, 4, 2, 2)
TEXT = RNG.standard_normal((2, 5, 6), dtype=np.float32)
IMAGE = RNG.standard_normal(SHAPE, dtype=np.float32)
TABLE = RNG.standard_normal((7, 8), dtype=np.float32)


class Arithmetic(Session):
    """Answers with something of each input, so that none can be mixed up; counts what is put and what is run."""

    inputs, outputs = ("latents", "text", "timestep", "image_latents", "rotary_cos"), ("velocity",)

    def __init__(self, batch: int | None = None) -> None:
        self.batch = batch
        self.puts = self.runs = 0

    def put(self, feeds: Feeds) -> Values:
        self.puts += 1
        return feeds

    def run(self, feeds: Values) -> dict[str, Array]:
        self.runs += 1
        latents, text, timestep, image, table = (np.asarray(feeds[name]) for name in self.inputs)
        assert self.batch in (None, len(latents)) and len(latents) == len(text) == len(timestep) == len(image)
        told = text.mean((1, 2)) + timestep + table.sum()
        return {"velocity": latents * 0.1 + image + told[:, None, None, None, None].astype(np.float32)}


def conditioning(latents: NDArray[np.float32], guided: bool = True) -> Conditioning:
    scheduler = scheduler_from_config({"_class_name": "CogVideoXDDIMScheduler", "prediction_type": "v_prediction"})
    run = scheduler.begin(4, np.random.default_rng(1))
    text = TEXT if guided else TEXT[1:]
    return Conditioning(latents, text, lambda timestep: 6.0, run, image_latents=IMAGE, fixed={"rotary_cos": TABLE})


@pytest.mark.parametrize("guided", [True, False])
def test_row_by_row_is_the_batch(guided: bool) -> None:
    text = TEXT if guided else TEXT[1:]
    latents = RNG.standard_normal(SHAPE, dtype=np.float32)
    whole, rows = Arithmetic(), Arithmetic(batch=1)
    found = [Denoiser(each, text, IMAGE, {"rotary_cos": TABLE}).velocity(latents, 500) for each in (whole, rows)]
    assert found[0].shape == (len(text), *SHAPE) and found[0].dtype == np.float32
    assert np.array_equal(found[0], found[1]) and (whole.runs, rows.runs) == (1, len(text))
    expected = latents * np.float32(0.1) + IMAGE + np.float32(text[0].mean() + 500 + TABLE.sum())
    assert np.allclose(found[0][0], expected, rtol=1e-5)


def test_constants_are_bound_once_for_all_steps() -> None:
    whole, rows = Arithmetic(), Arithmetic(batch=1)
    for session in (whole, rows):
        denoise(session, conditioning(RNG.standard_normal(SHAPE, dtype=np.float32)))
    assert (whole.puts, whole.runs) == (1, 4) and (rows.puts, rows.runs) == (2, 8)


def test_what_is_not_finite_names_its_step() -> None:
    class Overflowing(Arithmetic):
        def run(self, feeds: Values) -> dict[str, Array]:
            velocity = super().run(feeds)["velocity"]
            return {"velocity": velocity if self.runs < 3 else np.full_like(velocity, np.nan)}

    with pytest.raises(AccuracyError, match="not finite after step 3 of 4"):
        denoise(Overflowing(), conditioning(np.zeros(SHAPE, np.float32)))
