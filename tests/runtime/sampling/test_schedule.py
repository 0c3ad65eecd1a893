"""What a schedule's file may say, for which clips it holds, and what a forecast is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reelquant.runtime import ReelquantPipeline
from reelquant.runtime.bundle import SCHEDULES, Bundle, list_files, write_manifest
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.errors import BadInput, BundleError
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.request import Request, ResolvedRequest, resolve
from reelquant.runtime.sampling.schedule import Forecaster, Schedule, load_schedule, scheduler_facts, sources
from tests.conftest import TinyBundleMaker

REQUEST = Request("a circle", seed=1, steps=4, guidance=6.0)


def made(bundle: Bundle, kinds: str = "b-c-", order: int = 2, request: Request = REQUEST) -> Schedule:
    """Clean latents are held: guided by the newest of both predictions."""
    resolved = resolve(request, bundle)

    def held(end: int) -> tuple[float, ...]:
        seen = Forecaster(order)
        one = np.zeros((1, 1, 1, 1), np.float32)
        for kind in kinds[:end]:
            seen.see(one if kind in "bc" else None, one if kind in "bu" else None)
        return tuple(seen.held(6.0))

    return Schedule(
        name="held",
        kinds=kinds,
        order=order,
        coefficients=tuple(held(i + 1) for i in range(len(kinds))),
        checks=tuple(held(i) if i and kinds[i] == "b" else () for i in range(len(kinds))),
        bounds=tuple(1e9 if i and kinds[i] == "b" else 0.0 for i in range(len(kinds))),
        transformer=bundle.component_digest("transformer"),
        scheduler=scheduler_facts(resolved),
        size=str(resolved.size),
        guidance=(6.0, 6.0),
        measured={"psnr": 40.0},
    )


@pytest.fixture(scope="module")
def bundle(tiny_bundle: TinyBundleMaker) -> Bundle:
    return tiny_bundle("t2v")


def test_what_is_written_is_read(bundle: Bundle) -> None:
    schedule = made(bundle)
    again = Schedule.parse(schedule.to_json(), "here")
    assert again == schedule and again.digest == schedule.digest
    assert (schedule.steps, schedule.forwards) == (4, 3)
    assert [sources("b-c-u", end, 2) for end in range(6)] == [1, 3, 3, 4, 4, 5]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda facts: facts.update(version=2), "has version 2, and this reelquant reads 1"),
        (lambda facts: facts.update(kinds="-bb-"), "not letters b, c, u and -, the first a b"),
        (lambda facts: facts.update(kinds="bxb-"), "not letters b, c, u and -, the first a b"),
        (lambda facts: facts.update(kinds="b-c"), "tables are not of one entry a step"),
        (lambda facts: facts.update(order=0), "tables are not of one entry a step"),
        (lambda facts: facts["coefficients"][1].append(1.0), "step 1 has 4 coefficients, and 3 are due"),
        (lambda facts: facts["coefficients"][1].__setitem__(0, float("nan")), "a number is infinite, not a number"),
        (lambda facts: facts["bounds"].__setitem__(0, -1.0), "or a bound below 0"),
        (lambda facts: facts.update(size="large"), "is damaged"),
        (lambda facts: facts.update(name="../up"), "'../up' cannot name a schedule"),
        (lambda facts: facts.update(guidance=[1.0]), "guidance is not a least and a most"),
        (lambda facts: facts.pop("bounds"), "is damaged"),
        (lambda facts: facts.update(mood="good"), "is damaged"),
    ],
)
def test_a_damaged_schedule_is_refused(damage: Callable[[dict[str, Any]], Any], words: str, bundle: Bundle) -> None:
    facts = json.loads(made(bundle).to_json())
    damage(facts)
    with pytest.raises(BundleError, match=words):
        Schedule.parse(json.dumps(facts), "here")
    with pytest.raises(BundleError, match="schedule here is damaged"):
        Schedule.parse("[", "here")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"steps": 5}, "it was made for 4 steps, and the clip has 5"),
        ({"guidance": 3.0}, "it was made for a guidance of 6 to 6, and the clip has 3"),
        ({"frames": 17}, "it was made for 9x32x32, and the clip is 17x32x32"),
        ({"scheduler": "dpm"}, "it was made for another scheduler"),
    ],
)
def test_where_it_does_not_hold_every_step_is_computed(changed: dict[str, Any], words: str, bundle: Bundle) -> None:
    schedule = made(bundle)
    asked = replace(REQUEST, schedule=schedule, **changed)
    resolved = resolve(asked, bundle)
    assert resolved.schedule is None and words in (resolved.schedule_note or "")
    pipeline = Pipeline(bundle, EngineOptions("onnxruntime"))
    whole = pipeline.sample(replace(asked, schedule=None))
    np.testing.assert_array_equal(pipeline.sample(asked), whole)
    other = replace(schedule, transformer="ab" * 32)
    assert "another transformer" in (resolve(replace(REQUEST, schedule=other), bundle).schedule_note or "")


def test_a_bundles_own_schedule(bundle: Bundle, tmp_path: Path) -> None:
    bundle.copy_files(tmp_path)
    (tmp_path / SCHEDULES).mkdir()
    (tmp_path / SCHEDULES / "held.json").write_text(made(bundle).to_json())
    write_manifest(tmp_path, replace(bundle.manifest, files=list_files(tmp_path)))
    has = Bundle.open(tmp_path)
    assert has.digest == bundle.digest and load_schedule("held", has) == made(bundle)
    with pytest.raises(BadInput, match=r"has no schedule 'fast'; one of exact, held, a file \(.json\), or make one"):
        load_schedule("fast", has)
    with pytest.raises(BadInput, match="cannot read the schedule"):
        load_schedule(tmp_path / "none.json", has)
    pipeline = Pipeline(has, EngineOptions("onnxruntime"))
    clip = pipeline.generate(replace(REQUEST, schedule="held"))
    assert clip.provenance["forwards"] == 3
    told = clip.provenance["schedule"]
    assert (told["name"], told["of"], told["psnr"], told["given_up_at"]) == ("held", 8, 40.0, None)
    again = pipeline.generate(replace(REQUEST, schedule=tmp_path / SCHEDULES / "held.json"))
    assert again.frames.tobytes() == clip.frames.tobytes()
    assert pipeline.generate(replace(REQUEST, schedule="exact")).provenance["forwards"] == 8
    pipe = ReelquantPipeline(tmp_path, engine="onnxruntime")
    asked: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 6.0, "generator": 1, "output_type": "latent"}
    fast, whole = (pipe("a circle", schedule=each, **asked).frames for each in ("held", None))
    assert not np.array_equal(fast, whole)
    with pytest.warns(UserWarning, match="it was made for 4 steps, and the clip has 3"):
        pipe("a circle", schedule="held", **{**asked, "num_inference_steps": 3})
    (tmp_path / SCHEDULES / "held.json").write_text(made(bundle).to_json().replace("held", "hold"))
    with pytest.raises(BundleError, match="was changed after export"):
        load_schedule("held", has)


@pytest.mark.parametrize("scheduler", ["ddim", "dpm"])
def test_where_a_forecast_misses_the_rest_is_computed(scheduler: str, bundle: Bundle) -> None:
    """What was forecast is computed after all, with the same noise, and every later step."""
    asked = replace(REQUEST, scheduler=scheduler, steps=8)
    facts = scheduler_facts(resolve(asked, bundle))
    schedule = replace(made(bundle, "b--b-b--", order=1), scheduler=facts)
    tight = replace(schedule, bounds=(0.0, 0.0, 0.0, 1e-9, 0.0, 0.0, 0.0, 0.0))
    pipeline = Pipeline(bundle, EngineOptions("onnxruntime"))
    kept, found = (pipeline.generate(replace(asked, schedule=each)).provenance for each in (schedule, tight))
    assert (kept["forwards"], kept["schedule"]["given_up_at"]) == (6, None)
    # All eight steps, and the one that was held against its forecast once more.
    assert (found["forwards"], found["schedule"]["given_up_at"]) == (2 * (8 + 1), 3)
    mended, whole = (pipeline.sample(replace(asked, schedule=each)) for each in (tight, None))
    assert np.linalg.norm(mended - whole) / np.linalg.norm(whole) < 1e-5
    np.testing.assert_array_equal(mended, pipeline.sample(replace(asked, schedule=tight)))


def test_all_steps_computed_and_held_is_the_sampling_itself(bundle: Bundle) -> None:
    """A schedule that computes every step and forecasts nothing differs by the order of additions alone."""
    pipeline = Pipeline(bundle, EngineOptions("onnxruntime"))
    found, wanted = (pipeline.sample(replace(REQUEST, schedule=each)) for each in (made(bundle, "bbbb", order=1), None))
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 1e-5


def test_arrays_are_newest_first() -> None:
    seen = Forecaster(2)
    one, two, three, x = (np.full((1, 1, 1, 1), value, np.float32) for value in (1, 2, 3, 9))
    seen.see(one, 10 * one)
    seen.see(two)
    seen.see(three, 30 * one)
    assert [float(each.item()) for each in seen.arrays(x)] == [3, 2, 30, 10, 9]
    assert seen.clean((1, 0, 0, 0, 2), x).item() == 21


def test_a_clip_from_a_video_is_computed_whole(bundle: Bundle) -> None:
    video = np.zeros((9, 32, 32, 3), np.uint8)
    asked: ResolvedRequest = resolve(replace(REQUEST, video=video, strength=0.5, schedule=made(bundle)), bundle)
    assert "clips that start from noise" in (asked.schedule_note or "")


def test_a_schedule_is_of_its_timesteps(bundle: Bundle) -> None:
    """Neither does one of spaced steps hold at listed ones, nor one of these at others; at its own it does."""
    spaced, timesteps = made(bundle), (999, 856, 665, 399)
    listed = resolve(replace(REQUEST, steps=None, timesteps=timesteps), bundle)
    own = replace(spaced, scheduler=scheduler_facts(listed))
    assert own.timesteps == timesteps and Schedule.parse(own.to_json(), "here") == own
    cases: list[tuple[Schedule, Any, str | None]] = [
        (spaced, timesteps, "for evenly spaced steps, and the clip has the timesteps 999, 856, 665, 399"),
        (own, None, "for the timesteps 999, 856, 665, 399, and the clip has evenly spaced steps"),
        (
            own,
            (999, 856, 665, 400),
            "the timesteps 999, 856, 665, 399, and the clip has the timesteps 999, 856, 665, 400",
        ),
        (own, timesteps, None),
    ]
    for schedule, at, words in cases:
        asked = replace(REQUEST, steps=None if at else 4, timesteps=at, schedule=schedule)
        resolved = resolve(asked, bundle)
        assert (resolved.schedule is None) == (words is not None)
        assert (words or "") in (resolved.schedule_note or "") and bool(resolved.schedule_note) == bool(words)
    pipeline = Pipeline(bundle, EngineOptions("onnxruntime"))
    asked = replace(REQUEST, steps=None, timesteps=timesteps, schedule=spaced)
    np.testing.assert_array_equal(pipeline.sample(asked), pipeline.sample(replace(asked, schedule=None)))
