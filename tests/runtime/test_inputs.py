"""What a request holds: pictures, videos, fields and paths, checked where they enter and before any work."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reelquant.runtime import Request, load_pipeline
from reelquant.runtime.errors import BadInput
from reelquant.runtime.media.images import load_image
from reelquant.runtime.media.video import read_clip
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.provenance import clip_provenance
from reelquant.runtime.sampling.embeddings import EmbeddingCache
from reelquant.runtime.sampling.latents import SavedLatents
from reelquant.runtime.sampling.stepper import Work
from tests.command_line import refused
from tests.conftest import TinyBundleMaker
from tests.runtime.pictures import picture

Capture = pytest.CaptureFixture[str]
PROMPT = "a red circle moves right on a white background"


def nothing_is_done(stage: str, done: int, total: int) -> None:
    raise AssertionError(f"{stage}: {done} of {total}")


@pytest.fixture
def i2v(tiny_bundle: TinyBundleMaker) -> Pipeline:
    return load_pipeline(tiny_bundle("i2v").path)


@pytest.fixture
def t2v(tiny_bundle: TinyBundleMaker) -> Pipeline:
    return load_pipeline(tiny_bundle("t2v").path)


def test_an_image_may_be_a_path_a_picture_or_an_array(i2v: Pipeline, tmp_path: Path) -> None:
    Image.fromarray(picture(48, 64)).save(tmp_path / "first.png")
    given = (tmp_path / "first.png", str(tmp_path / "first.png"), Image.fromarray(picture(48, 64)), picture(48, 64))
    clips = [i2v.generate(Request(PROMPT, image, seed=1)) for image in given]
    assert len({clip.sha256 for clip in clips}) == 1
    other = i2v.generate(Request(PROMPT, np.zeros((32, 32, 3), np.uint8), seed=1))
    assert other.sha256 != clips[0].sha256
    exif = Image.Exif()
    exif[0x0112] = 5  # mirrored and turned: what undoes the transposition
    Image.fromarray(picture(48, 64).transpose(1, 0, 2)).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        assert np.array_equal(load_image(opened, 48, 64), picture(48, 64))


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (picture().astype(np.float32) / 255, r"an array of float32; give uint8 \[height, width, 3\], from values in 0…1"),
        (picture() > 100, "an array of bool"),
        (picture().astype(np.int64), "an array of int64"),
        (picture()[..., 0], r"an array of shape \[32, 32\]"),
        (picture()[..., :2], r"an array of shape \[32, 32, 2\]"),
        (picture()[:0], r"an array of shape \[0, 32, 3\]"),
        ([[0, 0, 0]], "is a list; give a path, a Pillow image, or an array"),
        (3, "is a int"),
        ("gone.png", "gone.png does not exist"),
        ("a\0b.png", "cannot be read: embedded null byte"),
        (Image.fromarray(picture()[..., 0].astype(np.float32) / 255), "a Pillow image of mode F, whose values may mean"),
        (Image.fromarray(picture()[..., 0].astype(np.int32)), "a Pillow image of mode I"),
        (Image.new("RGB", (0, 3)), "a Pillow image of 3x0"),
    ],
)  # fmt: skip
def test_other_images_are_refused_before_any_work(image: Any, said: str, i2v: Pipeline) -> None:
    with pytest.raises(BadInput, match=said):
        i2v.generate(Request(PROMPT, image, seed=1), on_step=nothing_is_done)
    assert "text_encoder" not in i2v.loaded


def test_a_picture_that_was_opened_but_cannot_be_read(i2v: Pipeline) -> None:
    """Pillow reads no pixel before it must: here that is when the clip is asked for."""
    whole = io.BytesIO()
    Image.effect_noise((99, 99), 50).save(whole, "PNG")
    cut = Image.open(io.BytesIO(whole.getvalue()[:2000]))
    closed = Image.open(whole)
    closed.close()
    for image in (cut, closed):
        with pytest.raises(BadInput, match="the image cannot be read .*; open it again, or give its path"):
            i2v.resolve(Request(PROMPT, image))


def test_a_video_may_be_a_path_an_array_or_pictures(t2v: Pipeline, tmp_path: Path) -> None:
    frames = np.stack([np.roll(picture(40, 48), i, 1) for i in range(12)])
    np.save(tmp_path / "video.npy", frames)
    given = (frames, str(tmp_path / "video.npy"), list(frames), [Image.fromarray(frame) for frame in frames])
    taken = [t2v.resolve(Request(PROMPT, video=video, strength=0.5)) for video in given]
    for settings in taken:
        assert settings.skip == 2 and settings.video is not None and taken[0].video is not None
        assert settings.video.shape == (9, 32, 32, 3) and np.array_equal(settings.video, taken[0].video)
    assert t2v.resolve(Request(PROMPT, video=frames)).skip == 4 - int(4 * 0.8)
    for video, said in (
        (frames[:5], "the video has 5 frames and 9 are wanted"),
        (frames.astype(np.float32), "an array of float32"),
        ("gone.mp4", "does not exist"),
        (7, "the video is a int; give a path, a list of pictures, or an array"),
        ([*frames[:8], frames[8] / 255], "frame 8 of the video is an array of float64"),
    ):
        wrong: Any = video
        with pytest.raises(BadInput, match=said):
            t2v.resolve(Request(PROMPT, video=wrong))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"seed": 1.5}, "seed is 1.5, not a whole number"),
        ({"steps": "4"}, "steps is '4', not a whole number"),
        ({"frames": True}, "frames is True, not a whole number"),
        ({"guidance": "6"}, "guidance is '6', not a number"),
        ({"prompt": None}, "the prompt is a NoneType, not a str"),
        ({"prompt": b"a circle"}, "the prompt is a bytes, not a str"),
        ({"negative_prompt": 3}, "the negative prompt is a int, not a str"),
        ({"scheduler": ["ddim"]}, "scheduler is a list, not a str"),
        ({"scheduler": "euler"}, "unknown scheduler 'euler'; one of ddim, dpm"),
        ({"latents": [1.0]}, r"latents is list; give finite float32 \[3, 4, 4, 4\]"),
        ({"latents": np.zeros((3, 4, 4, 5))}, r"latents has shape \[3, 4, 4, 5\]; give finite float32 \[3, 4, 4, 4\]"),
        ({"latents": np.full((3, 4, 4, 4), np.nan)}, "latents has NaN or infinite values"),
        ({"scheduler": "dpm", "step_noise": (np.zeros((3, 4, 4, 4)),)}, "step_noise is no tuple of arrays for the 4"),
        ({"scheduler": "dpm", "step_noise": (np.zeros(3),) * 4}, r"step_noise\[0\] has shape \[3\]"),
        ({"video": np.zeros((9, 32, 32, 3), np.uint8), "image_noise": np.zeros(3)}, r"image_noise has shape \[3\]"),
        ({"strength": 0.3}, "strength says how much of a video is made anew, and there is none"),
    ],
)
def test_fields_of_another_type(wrong: dict[str, Any], said: str, t2v: Pipeline) -> None:
    with pytest.raises(BadInput, match=said):
        t2v.generate(replace(Request(PROMPT), **wrong), on_step=nothing_is_done)


def test_numbers_of_numpy_are_numbers(t2v: Pipeline, tmp_path: Path) -> None:
    request = Request(PROMPT, seed=np.int64(3), steps=np.int32(2), frames=np.int16(9), guidance=np.float32(2))  # type: ignore[arg-type]
    t2v.generate(request).save(tmp_path / "clip.mp4")
    video = replace(request, video=np.zeros((9, 32, 32, 3), np.uint8), strength=np.float32(0.5))  # type: ignore[arg-type]
    assert json.dumps(clip_provenance(t2v.resolve(video), t2v.bundle, {}, Work()))


def test_what_the_pipeline_itself_is_given(tiny_bundle: TinyBundleMaker, t2v: Pipeline, tmp_path: Path) -> None:
    threads: Any
    for threads in ("2", 0, -1, 2.5, True):
        with pytest.raises(BadInput, match=f"threads is {threads!r}; give a number of CPU threads"):
            load_pipeline(tiny_bundle("t2v").path, threads=threads)
    request: Any = b"a red circle"
    with pytest.raises(BadInput, match="a bytes is no request; give a Request, or a prompt"):
        t2v.generate(request)
    for keep, said in ((tmp_path, "does not end in one of .npz"), (tmp_path / "a\0.npz", "has a zero byte")):
        with pytest.raises(BadInput, match=said):
            t2v.generate(PROMPT, keep=keep, on_step=nothing_is_done)


def test_a_missing_image_is_refused_before_the_text_encoder_runs(
    tiny_bundle: TinyBundleMaker, tmp_path: Path, capfd: Capture
) -> None:
    i2v, t2v, out = tiny_bundle("i2v").path, tiny_bundle("t2v").path, tmp_path / "a.mp4"
    kept = ("--embeddings", tmp_path / "kept")  # which would be there, had it run
    for bundle, option in ((i2v, "--image"), (t2v, "--video")):
        said = refused(capfd, tmp_path, "generate", bundle, PROMPT, option, "gone.mp4", "-o", out, *kept)
        assert "does not exist" in said
    assert "there is none" in refused(capfd, tmp_path, "generate", t2v, PROMPT, "--strength", "0.3", "-o", out, *kept)
    tiled = refused(capfd, tmp_path, "generate", t2v, PROMPT, "--tiled", "-o", out, *kept)
    assert "this bundle does not say the VAE's sample_height and sample_width; export it again" in tiled


def test_paths_of_the_public_api_may_be_strings(tiny_bundle: TinyBundleMaker, tmp_path: Path) -> None:
    pipeline = load_pipeline(str(tiny_bundle("t2v").path), embeddings=str(tmp_path / "kept"))
    clip = pipeline.generate(Request(PROMPT, seed=1), keep=str(tmp_path / "latents.npz"))
    clip.save(str(tmp_path / "clip.mp4"))
    assert read_clip(str(tmp_path / "clip.mp4")).frames.shape == clip.frames.shape
    saved = SavedLatents.load(str(tmp_path / "latents.npz"))
    saved.save(str(tmp_path / "again.npz"))
    assert pipeline.decode_saved(saved).sha256 == clip.sha256
    ids = pipeline.tokenizer.encode(PROMPT)
    kept = EmbeddingCache(str(tmp_path / "by hand"), "an encoder")
    kept.keep(ids, np.ones((len(ids), 2), np.float32))
    assert kept.find(ids) is not None
