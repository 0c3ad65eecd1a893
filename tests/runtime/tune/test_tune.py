"""The fastest way to run a bundle here is measured, remembered, and taken from then on; and not where it no longer holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.registry import get_engine
from reelquant.runtime.media.video import read_provenance
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.request import Request
from reelquant.runtime.sizes import Size
from reelquant.runtime.tune.measure import Candidate, candidates, measure, operations
from reelquant.runtime.tune.record import Tuned, recall, remember, tuned_options
from tests.command_line import refused, run
from tests.conftest import BundleMaker, TinyBundleMaker

Capture = pytest.CaptureFixture[str]
ENGINES = {"openvino", "onnxruntime"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REELQUANT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tuned(engine: str, size: str = "9x32x32", **changes: object) -> Tuned:
    made = Tuned(size, engine, get_engine(engine).version(), 1, 1, 2.0)
    return replace(made, **changes)  # type: ignore[arg-type]


def test_the_command_measures_remembers_and_is_obeyed(
    tiny_bundle: TinyBundleMaker, tmp_path: Path, capfd: Capture
) -> None:
    bundle = tiny_bundle("t2v")
    ran = run(capfd, "tune", bundle.path, "--seconds", "1", "--json")
    assert ran.code == 0 and ran.err == ""
    (found,) = json.loads(ran.out)["bundles"]
    ways = {(each["engine"], each["batch"]) for each in found["measured"]}
    assert ways >= {(engine, batch) for engine in ENGINES for batch in (1, 2)} and not any(
        each["failed"] for each in found["measured"]
    )
    taken = [each["clip_seconds"] for each in found["measured"]]
    assert taken == sorted(taken) and taken[0] > 0
    for each in found["measured"]:
        assert each["clip_seconds"] == pytest.approx(found["steps"] * each["step_seconds"] + each["decode_seconds"])
    best = found["measured"][0]
    kept = recall(bundle, Size(9, 32, 32))
    assert kept is not None and (kept.engine, kept.batch) == (best["engine"], best["batch"])
    made = run(capfd, "generate", bundle.path, "a circle", "-o", tmp_path / "clip.mp4", "--steps", "1", "--seed", "1")
    says = read_provenance(tmp_path / "clip.mp4")
    assert made.code == 0 and (says["engine"], says["batch"]) == (best["engine"], best["batch"])


def test_precisions_are_compared(tiny_bundle: TinyBundleMaker, capfd: Capture) -> None:
    first, second = tiny_bundle("t2v").path, tiny_bundle("i2v").path
    ran = run(capfd, "tune", first, second, "--seconds", "1")
    assert ran.code == 0 and f"fastest here: {first} on" in ran.out or f"fastest here: {second} on" in ran.out
    assert ran.out.count("← remembered") == 2


def test_tuned_options_are_taken_where_no_engine_is_named(tiny_bundle: TinyBundleMaker) -> None:
    bundle = tiny_bundle("t2v")
    assert tuned_options(bundle, EngineOptions()) == (EngineOptions(), "")
    remember(bundle, tuned("onnxruntime"))
    for asked in (EngineOptions(), EngineOptions("auto")):
        assert tuned_options(bundle, asked) == (EngineOptions("onnxruntime", 1, batch=1), "")
    assert tuned_options(bundle, EngineOptions("openvino")) == (EngineOptions("openvino"), "")
    given, note = tuned_options(bundle, EngineOptions(threads=2, batch=2))
    assert (given.engine, given.threads, given.batch, note) == ("onnxruntime", 2, 2, "")
    pipeline = Pipeline(bundle)
    assert pipeline.engine.name == "onnxruntime" and pipeline.options.batch == 1 and pipeline.engine_note == ""


def test_a_threads_variable_is_the_users_word(tiny_bundle: TinyBundleMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    remember(tiny_bundle("t2v"), tuned("onnxruntime"))
    monkeypatch.setenv("REELQUANT_THREADS", "2")
    assert tuned_options(tiny_bundle("t2v"), EngineOptions())[0].threads == 2


def test_the_nearest_size_is_taken(tiny_bundle: TinyBundleMaker) -> None:
    bundle = tiny_bundle("t2v")
    remember(bundle, tuned("onnxruntime"))
    remember(bundle, tuned("openvino", "17x64x64"))
    assert tuned_options(bundle, EngineOptions())[0].engine == "onnxruntime"  # the bundle's own size
    assert tuned_options(bundle, EngineOptions(), Size(17, 48, 64))[0].engine == "openvino"
    remember(bundle, tuned("openvino"))  # in the place of what was found before
    assert tuned_options(bundle, EngineOptions())[0].engine == "openvino"


def test_another_version_is_said_and_not_taken(tiny_bundle: TinyBundleMaker) -> None:
    bundle = tiny_bundle("t2v")
    remember(bundle, tuned("onnxruntime", version="1.0"))
    options, note = tuned_options(bundle, EngineOptions())
    assert (
        options == EngineOptions()
        and "was tuned with onnxruntime 1.0, and this is" in note
        and "reelquant tune" in note
    )


def test_an_engine_that_is_gone_is_said_and_not_taken(tiny_bundle: TinyBundleMaker) -> None:
    bundle = tiny_bundle("t2v")
    remember(bundle, replace(tuned("onnxruntime"), engine="steam"))
    options, note = tuned_options(bundle, EngineOptions())
    assert (
        options == EngineOptions() and "was tuned for steam, which cannot run it now: there is no engine steam" in note
    )


def test_auto_says_where_nothing_was_tuned(tiny_bundle: TinyBundleMaker, tmp_path: Path, capfd: Capture) -> None:
    bundle = tiny_bundle("t2v").path
    command = ("generate", bundle, "a circle", "-o", tmp_path / "clip.npy", "--steps", "1", "--engine", "AUTO")
    ran = run(capfd, *command)
    assert ran.code == 0 and f"nothing was tuned here for {bundle}; run: reelquant tune {bundle}" in ran.err


@pytest.mark.parametrize(
    "text", ["", "{", "[{}]", '["x"]', '[{"size": "9x0x1"}]', "[1]", '[{"size": "x", "engine": "openvino"}]']
)
def test_a_damaged_record_is_none(text: str, tiny_bundle: TinyBundleMaker) -> None:
    bundle = tiny_bundle("t2v")
    remember(bundle, tuned("onnxruntime")).write_text(text)
    assert recall(bundle, Size(9, 32, 32)) is None
    remember(bundle, tuned("openvino"))
    assert recall(bundle, Size(9, 32, 32)) == tuned("openvino")


def test_a_changed_bundle_is_another(tiny_bundle: TinyBundleMaker) -> None:
    remember(tiny_bundle("t2v"), tuned("onnxruntime"))
    assert recall(tiny_bundle("i2v"), Size(9, 32, 32)) is None


def test_a_long_clip_is_measured_on_few_frames(demo_bundle: BundleMaker) -> None:
    """Where a step of the whole takes too long for the seconds there are, its time is scaled by the operations."""
    bundle = demo_bundle("t2v", "fp32")
    whole, short = Size(49, 96, 96), Size(9, 96, 96)
    way = (Candidate("openvino", None, 2),)
    (quick,), (slow,) = measure(bundle, whole, way, 0.01), measure(bundle, whole, way, 1000)
    assert operations(bundle, whole) / operations(bundle, short) > 3
    assert slow.step_seconds / 4 < quick.step_seconds < slow.step_seconds * 4


def test_one_that_fails_does_not_stop_the_others(tiny_bundle: TinyBundleMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tiny_bundle("t2v")
    engine = get_engine("onnxruntime")
    assert engine.memory is not None
    greedy = replace(engine.memory, high=replace(engine.memory.high, weights=1e15))
    monkeypatch.setattr(type(engine), "memory", greedy)
    found = measure(bundle, Size(9, 32, 32), candidates(bundle), 0.1)
    assert found[0].candidate.engine == "openvino" and not found[0].failed
    assert "its weights take" in found[-1].failed and found[-1].candidate.engine == "onnxruntime"


def test_what_cannot_be_is_refused_before_anything_is_measured(
    tiny_bundle: TinyBundleMaker, capfd: Capture, tmp_path: Path
) -> None:
    bundle = tiny_bundle("t2v").path
    assert "10 frames is not" in refused(capfd, tmp_path, "tune", bundle, "--size", "10x32x32")
    assert str(tmp_path / "none") in refused(capfd, tmp_path, "tune", bundle, tmp_path / "none")
    assert "--seconds" in refused(capfd, tmp_path, "tune", bundle, "--seconds", "0")


def test_batch_of_one_gives_the_same_clip(demo_bundle: BundleMaker) -> None:
    """Both halves of guidance together, or one after the other: the same numbers, but for the last bits."""
    bundle: Bundle = demo_bundle("t2v", "fp32")
    request = Request("a red circle moves right on a white background", seed=1, steps=2)
    clips = [Pipeline(bundle, EngineOptions("openvino", batch=batch)).sample(request) for batch in (1, 2)]
    assert abs(clips[0] - clips[1]).max() < 1e-4
