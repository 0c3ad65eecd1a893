"""A clip says all that makes it again, and is made again from that; and which engine runs when none is named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reelquant.runtime import Clip, Request, load_pipeline
from reelquant.runtime.bundle import Bundle, write_manifest
from reelquant.runtime.engines.choose_engine import choose_engine
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.media.video import read_provenance
from tests.command_line import refused, run
from tests.conftest import TinyBundleMaker

Capture = pytest.CaptureFixture[str]
PROMPT = "a red circle moves right on a white background"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(tmp_path / "first.png")
    return tmp_path / "first.png"


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png"])
@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_a_clip_is_made_again(
    task: str, suffix: str, tiny_bundle: TinyBundleMaker, image: Path, tmp_path: Path, capfd: Capture
) -> None:
    bundle, first = tiny_bundle(task).path, tmp_path / f"clip{suffix}"
    options = ("--steps", "3", "--guidance", "2.5", "--size", "17x32x48", "--negative-prompt", "blue")
    more = ("--scheduler", "DPM", "--engine", "onnxruntime", "--threads", "1")
    given = ("--image", image) if task == "i2v" else ()
    made = run(capfd, "generate", bundle, PROMPT, *given, "-o", first, *options, *more, "--json")
    assert made.code == 0, made.err
    again = run(capfd, "generate", bundle, "--like", first, "-o", tmp_path / "again.npy", "--json")
    assert again.code == 0, again.err
    one, two = json.loads(made.out), json.loads(again.out)
    assert one["sha256_frames"] == two["sha256_frames"] and two["engine"] == "onnxruntime" and again.err == ""
    assert (two["frames"], two["height"], two["width"], two["seed"]) == (17, 32, 48, one["seed"])
    other = run(capfd, "generate", bundle, "a blue square", "--like", first, "-o", tmp_path / "b.mp4", "--json")
    assert json.loads(other.out)["sha256_frames"] != one["sha256_frames"]
    said = read_provenance(tmp_path / "b.mp4")
    assert said["prompt"] == "a blue square" and said["seed"] == one["seed"] and said["threads"] == 1


def test_what_cannot_be_made_again(tiny_bundle: TinyBundleMaker, image: Path, tmp_path: Path, capfd: Capture) -> None:
    t2v, i2v, out = tiny_bundle("t2v").path, tiny_bundle("i2v").path, tmp_path / "again.mp4"
    pipeline = load_pipeline(i2v)
    pipeline.generate(Request(PROMPT, image, seed=1)).save(tmp_path / "clip.mp4")
    said = refused(capfd, tmp_path, "generate", t2v, "--like", tmp_path / "clip.mp4", "-o", out)
    assert "was made from bundle " in said and "give the bundle that it was made from" in said
    image.rename(tmp_path / "moved.png")
    said = refused(capfd, tmp_path, "generate", i2v, "--like", tmp_path / "clip.mp4", "-o", out)
    assert "first.png does not exist" in said
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(image)
    said = refused(capfd, tmp_path, "generate", i2v, "--like", tmp_path / "clip.mp4", "-o", out)
    assert "clip.mp4 was made from (its pixels at the clip's size differ)" in said
    Clip(np.zeros((2, 32, 32, 3), np.uint8), 8).save(tmp_path / "silent.mp4")
    said = refused(capfd, tmp_path, "generate", i2v, "--like", tmp_path / "silent.mp4", "-o", out)
    assert "does not say how it was made" in said
    said = refused(capfd, tmp_path, "generate", i2v, "--like", tmp_path / "x.npy", "-o", out)
    assert "does not end in .mp4, .gif or .png" in said
    noise = np.zeros((3, 4, 4, 4), np.float32)
    load_pipeline(t2v).generate(Request(PROMPT, latents=noise, seed=1)).save(tmp_path / "given.png")
    said = refused(capfd, tmp_path, "generate", t2v, "--like", tmp_path / "given.png", "-o", out)
    assert "was made from latents that a program handed in" in said
    wrong: dict[str, Any]
    for wrong in ({"image": "first.png"}, {"threads": "2"}, {"engine": []}, {"given": None}, {"seed": None}):
        made = {**load_pipeline(t2v).generate(Request(PROMPT, seed=1)).provenance, **wrong}
        Clip(np.zeros((2, 32, 32, 3), np.uint8), 8, made).save(tmp_path / "wrong.gif")
        said = refused(capfd, tmp_path, "generate", t2v, "--like", tmp_path / "wrong.gif", "-o", out)
        assert "does not say how it was made" in said
    assert "there is no PROMPT" in refused(capfd, tmp_path, "generate", t2v, "-o", out)


def test_another_image_is_said(tiny_bundle: TinyBundleMaker, image: Path, tmp_path: Path, capfd: Capture) -> None:
    bundle = tiny_bundle("i2v").path
    load_pipeline(bundle).generate(Request(PROMPT, image, seed=1)).save(tmp_path / "clip.mp4")
    image.rename(tmp_path / "moved.png")
    Image.fromarray(np.full((40, 40, 3), 99, np.uint8)).save(tmp_path / "other.png")
    like = ("generate", bundle, "--like", tmp_path / "clip.mp4", "-o", tmp_path / "again.npy")
    assert run(capfd, *like, "--image", tmp_path / "moved.png").err == ""
    other = run(capfd, *like, "--image", tmp_path / "other.png")
    assert "clip.mp4 was made from another image or video: frames will differ" in other.err


def test_how_latents_were_decoded(tiny_bundle: TinyBundleMaker, tmp_path: Path, capfd: Capture) -> None:
    bundle, kept = tiny_bundle("t2v").path, tmp_path / "kept.npz"
    made = run(capfd, "generate", bundle, PROMPT, "--seed", "1", "--latents", kept, "-o", tmp_path / "a.mp4")
    assert made.code == 0, made.err
    for options, said in (
        ((), ""),
        (("--engine", "onnxruntime"), "decoded apart, with {"),
        (("--threads", "3"), '"threads": 3'),
    ):
        assert run(capfd, "decode", bundle, kept, "-o", tmp_path / "b.mp4", *options).code == 0
        again = run(capfd, "generate", bundle, "--like", tmp_path / "b.mp4", "-o", tmp_path / "c.npy")
        assert again.code == 0 and (said in again.err if said else again.err == "")


def test_threads_of_the_environment_are_kept(tiny_bundle: TinyBundleMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REELQUANT_THREADS", "2")
    assert load_pipeline(tiny_bundle("t2v").path).generate(Request(PROMPT, seed=1)).provenance["threads"] == 2


def test_an_array_has_no_path_but_pixels(tiny_bundle: TinyBundleMaker) -> None:
    made = load_pipeline(tiny_bundle("i2v").path).generate(Request(PROMPT, np.zeros((9, 9, 3), np.uint8), seed=1))
    assert made.provenance["image"]["path"] is None and len(made.provenance["image"]["sha256"]) == 64
    assert made.provenance["given"] == [] and made.provenance["version"] and made.provenance["engine_version"]
    json.dumps(made.provenance)


def built_for(bundle: Bundle, folder: Path, *engines: str) -> Bundle:
    shutil.copytree(bundle.path, folder)
    records = {name: {"version": "1.7.1.116", "targets": ["sm89"], "gpu": None, "engines": []} for name in engines}
    write_manifest(folder, replace(bundle.manifest, engines=records))
    return Bundle.open(folder)


def chosen(bundle: Bundle) -> tuple[str, str]:
    engine, note = choose_engine(bundle, EngineOptions())
    return engine.name, note


def test_the_engine_it_was_built_for(tiny_bundle: TinyBundleMaker, tmp_path: Path, capfd: Capture) -> None:
    bundle = tiny_bundle("t2v")
    assert chosen(bundle) == ("openvino", "")
    for number, engines in enumerate((("onnxruntime",), ("onnxruntime", "openvino"), ("tensorrt-rtx", "onnxruntime"))):
        built = built_for(bundle, tmp_path / str(number), *engines)
        assert chosen(built) == ("onnxruntime", "")
        assert load_pipeline(built.path).engine.name == "onnxruntime"
        assert load_pipeline(built.path, "openvino").engine.name == "openvino"
    for_gpus = built_for(bundle, tmp_path / "gpus", "tensorrt-rtx")
    engine, why = chosen(for_gpus)
    assert engine == "openvino" and "is built for tensorrt-rtx, which cannot run here: no NVIDIA driver" in why
    ran = run(capfd, "generate", for_gpus.path, PROMPT, "-o", tmp_path / "a.npy", "--json")
    assert ran.code in (0, 1) and json.loads(ran.out)["engine"] == "openvino" and "; using openvino" in ran.err
    named = run(capfd, "generate", for_gpus.path, PROMPT, "-o", tmp_path / "a.npy", "--engine", "OpenVINO")
    assert named.code in (0, 1) and "cannot run here" not in named.err
