"""Runs that are timed: what they are fed, and whose turn it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.registry import get_engine
from reelquant.runtime.engines.session import Array, Session, Values
from reelquant.runtime.models.cogvideox.geometry import Geometry
from reelquant.runtime.sizes import Size
from reelquant.runtime.tune.timing import in_turns, ratios, step_feeds
from tests.conftest import BundleMaker


class Noted(Session):
    """Passes runs on to a real session, and notes whose they were."""

    def __init__(self, name: str, bundle: Bundle, turns: list[str]) -> None:
        self.name, self.turns = name, turns
        self.session = get_engine("onnxruntime").open_component(
            bundle, "transformer", EngineOptions("onnxruntime"), "main"
        )["main"]
        self.inputs, self.outputs = self.session.inputs, self.session.outputs

    def run(self, feeds: Values) -> dict[str, Array]:
        self.turns.append(self.name)
        return self.session.run(feeds)


@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_a_step_of_the_bundles_own_size_runs(demo_bundle: BundleMaker, task: str) -> None:
    bundle = demo_bundle(task, "fp32")
    turns: list[str] = []
    runs = {name: (Noted(name, bundle, turns), step_feeds(bundle)) for name in ("a", "b")}
    taken = in_turns(runs, 3)
    assert turns == ["a", "b"] * 5  # two of each are to warm up
    assert [len(times) for times in taken.values()] == [3, 3] and min(min(times) for times in taken.values()) > 0


def test_latent_frames_are_as_many_as_the_patch_takes(demo_bundle: BundleMaker) -> None:
    """CogVideoX 1.5 takes latent frames in pairs."""
    bundle = demo_bundle("t2v", "fp32")
    later = Bundle(bundle.path, replace(bundle.manifest, geometry=Geometry(patch_t=2, max_frames=81)))
    assert step_feeds(bundle, Size(9, 64, 64))["latents"].shape[1] == 3
    assert step_feeds(later, Size(9, 64, 64))["latents"].shape[1] == 4


def test_ratios_are_taken_turn_by_turn() -> None:
    middle, low, high = ratios([2.0, 40.0, 6.0], [1.0, 10.0, 2.0])
    assert middle == 3.0 and low == pytest.approx(np.quantile([2, 4, 3], 0.1)) and high == pytest.approx(3.8)
