"""A bundle of a few-step model: its own timesteps and guidance, and what a request makes of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reelquant.runtime import ReelquantPipeline
from reelquant.runtime.bundle import Bundle, list_files, write_manifest
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.errors import BadInput, BundleError
from reelquant.runtime.media.video import read_provenance
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.request import Request, resolve
from tests.command_line import refused, run
from tests.conftest import TinyBundleMaker

Capture = pytest.CaptureFixture[str]
PROMPT = "a red circle moves right on a white background"
OWN = [999, 856, 665, 399]
ONNX = ("--engine", "onnxruntime", "--seed", "3", "--json")


@pytest.fixture(scope="module")
def few(tiny_bundle: TinyBundleMaker, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return changed(tiny_bundle("t2v"), tmp_path_factory.mktemp("few"), steps=4, timesteps=OWN, guidance=1.0)


def changed(bundle: Bundle, folder: Path, **defaults: Any) -> Bundle:
    bundle.copy_files(folder)
    made = replace(bundle.manifest, defaults=replace(bundle.manifest.defaults, **defaults), files=list_files(folder))
    write_manifest(folder, made)
    return Bundle.open(folder)


def test_clips_are_made_at_the_bundles_own_timesteps(few: Bundle, tiny_bundle: TinyBundleMaker) -> None:
    """Against the sampling written out: one row a step, the velocity, and eq. 12 of DDIM to the next of them."""
    assert few.digest == tiny_bundle("t2v").digest  # its graphs are the same
    pipeline = Pipeline(few, EngineOptions("onnxruntime"))
    resolved = pipeline.resolve(Request(PROMPT, seed=3))
    assert (resolved.steps, resolved.guidance, resolved.notes) == (4, 1.0, [])
    made = pipeline.prepare(resolved)
    assert len(made.text) == 1  # the empty prompt is not encoded
    session, latents = pipeline.transformer(), made.latents
    levels = [*resolved.scheduler.levels[OWN], 1.0]
    for i, timestep in enumerate(OWN):
        fed = {"latents": latents[None], "text": made.text, "timestep": np.array([timestep]), **made.fixed}
        velocity, (a, b) = session.run(fed)["velocity"][0], levels[i : i + 2]
        clean = a**0.5 * latents - (1 - a) ** 0.5 * velocity
        noise = (latents - a**0.5 * clean) / (1 - a) ** 0.5
        latents = (b**0.5 * clean + (1 - b) ** 0.5 * noise).astype(np.float32)
    np.testing.assert_allclose(pipeline.sample(resolved), latents, rtol=0, atol=1e-5)
    clip = pipeline.generate(resolved)
    assert clip.provenance["timesteps"] == OWN and clip.provenance["forwards"] == 4
    # The same is had from any bundle of these networks, by asking for it.
    other = Pipeline(tiny_bundle("t2v"), EngineOptions("onnxruntime"))
    np.testing.assert_array_equal(
        other.sample(Request(PROMPT, seed=3, timesteps=OWN, guidance=1)), pipeline.sample(resolved)
    )


def test_what_a_user_says_stands_in_their_place(few: Bundle) -> None:
    plain = resolve(Request(PROMPT, steps=5), few)
    assert plain.scheduler.listed is None and plain.steps == 5
    assert plain.notes == [
        (
            "5 steps, evenly spaced, stand in the place of the timesteps that this bundle is made for: 999, 856, 665, 399; "
            "without a number of steps, clips are made at those"
        )
    ]
    dpm = resolve(Request(PROMPT, scheduler="dpm"), few)
    assert type(dpm.scheduler).__name__ == "DPM" and dpm.scheduler.listed == tuple(OWN) and dpm.notes == []
    others = resolve(Request(PROMPT, timesteps=np.array([900, 0]).tolist(), guidance=3), few)
    assert (others.steps, others.scheduler.listed, others.guidance, others.notes) == (2, (900, 0), 3.0, [])
    assert resolve(Request(PROMPT, steps=2, timesteps=(900, 0)), few).steps == 2


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            {"timesteps": (399, 665)},
            "timestep 665 comes after 399 and is not less; give whole numbers from 999 down to 0",
        ),
        ({"timesteps": (1000,)}, "timestep 1000 is not from 0 to 999"),
        ({"timesteps": ()}, "there are no timesteps"),
        ({"timesteps": "999"}, "timesteps is a str, not a list of whole numbers"),
        ({"timesteps": 999}, "timesteps is a int, not a list of whole numbers"),
        (
            {"timesteps": (900, 0), "steps": 3},
            "3 steps, and 2 timesteps: each timestep is a step; leave out one of them",
        ),
    ],
)
def test_timesteps_that_are_refused(asked: dict[str, Any], words: str, few: Bundle) -> None:
    with pytest.raises(BadInput, match=words):
        resolve(Request(PROMPT, **asked), few)


@pytest.mark.parametrize(
    ("defaults", "words"),
    [
        ({"timesteps": [399, 665, 5, 4]}, "timestep 665 comes after 399 and is not less; .*; export the bundle again"),
        ({"timesteps": [5, 4]}, "has 2 timesteps for its 4 steps"),
        ({"timesteps": "999"}, "timesteps is '999', which is not of the kind"),
    ],
)
def test_a_manifest_with_timesteps_that_no_run_has(
    defaults: dict[str, Any], words: str, tiny_bundle: TinyBundleMaker, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=words):
        changed(tiny_bundle("t2v"), tmp_path, **defaults)


def test_the_command_and_a_clip_made_again(few: Bundle, tmp_path: Path, capfd: Capture) -> None:
    first = tmp_path / "a.mp4"
    ran = run(capfd, "generate", few.path, PROMPT, "-o", first, *ONNX)
    one = json.loads(ran.out)
    assert (one["forwards"], one["steps"], one["timesteps"], one["steps_note"], ran.err) == (4, 4, OWN, None, "")
    assert read_provenance(first)["timesteps"] == OWN
    again = json.loads(run(capfd, "generate", few.path, "--like", first, "-o", tmp_path / "b.mp4", "--json").out)
    assert (again["sha256_frames"], again["timesteps"]) == (one["sha256_frames"], OWN)
    # What stands beside --like replaces the steps that the clip had, of either kind.
    ran = run(capfd, "generate", few.path, "--like", first, "--steps", "2", "-o", tmp_path / "c.mp4", "--json")
    two = json.loads(ran.out)
    assert (two["steps"], two["timesteps"]) == (2, None) and "2 steps, evenly spaced" in ran.err
    assert two["steps_note"] in ran.err
    back = run(capfd, "generate", few.path, "--like", tmp_path / "c.mp4", "-o", tmp_path / "d.mp4", "--json")
    assert json.loads(back.out)["sha256_frames"] == two["sha256_frames"]
    more = ("--like", tmp_path / "c.mp4", "--timesteps", "999, 5", "-o", tmp_path / "e.mp4", "--json")
    assert json.loads(run(capfd, "generate", few.path, *more).out)["timesteps"] == [999, 5]
    said = refused(capfd, tmp_path, "generate", few.path, PROMPT, "--timesteps", "999;5", "-o", tmp_path / "f.mp4")
    assert "--timesteps '999;5' is no list of whole numbers; write them with commas" in said
    said = refused(capfd, tmp_path, "generate", few.path, PROMPT, "--timesteps", "5,999", "-o", tmp_path / "f.mp4")
    assert "timestep 999 comes after 5 and is not less" in said


def test_a_file_of_clips(few: Bundle, tmp_path: Path, capfd: Capture) -> None:
    lines = [{"prompt": "a circle"}, {"prompt": "a circle", "timesteps": [900, 1]}, {"prompt": "a circle", "steps": 2}]
    (tmp_path / "clips.jsonl").write_text("\n".join(map(json.dumps, lines)))
    ran = run(capfd, "batch", few.path, tmp_path / "clips.jsonl", tmp_path / "out", *ONNX[:2], "--json")
    made = json.loads(ran.out)["clips"]
    assert [clip["forwards"] for clip in made] == [4, 2, 2]
    assert ran.err.count("stand in the place of") == 1 and "line 3 (0003): 2 steps" in ran.err
    again = run(capfd, "batch", few.path, tmp_path / "clips.jsonl", tmp_path / "out", *ONNX[:2], "--json")
    assert len(json.loads(again.out)["made_before"]) == 3


def test_diffusers_face(few: Bundle) -> None:
    pipe = ReelquantPipeline(few.path, engine="onnxruntime")
    heard: list[int] = []
    frames = pipe(PROMPT, generator=3, output_type="np", callback_on_step_end=lambda p, i, t, k: heard.append(t)).frames
    assert heard == OWN and frames[0].shape == (9, 32, 32, 3)
    heard.clear()
    pipe(PROMPT, generator=3, timesteps=[900, 1], callback_on_step_end=lambda p, i, t, k: heard.append(t))
    assert heard == [900, 1]
    with pytest.warns(UserWarning, match="2 steps, evenly spaced, stand in the place of the timesteps"):
        pipe(PROMPT, generator=3, num_inference_steps=2)


def test_a_video_begins_at_its_share_of_them(few: Bundle) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8)
    resolved = resolve(Request(PROMPT, video=clip, strength=0.5), few)
    run = resolved.scheduler.begin(resolved.steps, np.random.default_rng(0), skip=resolved.skip)
    assert run.timesteps.tolist() == OWN[2:]
