"""What users hand in: pictures, videos, prompts and names, checked where they enter and before any work."""

from __future__ import annotations

import io
import json
import struct
import sys
import tracemalloc
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tokenizers.normalizers import NFKC

from demo.architecture import build_tokenizer
from reelquant.runtime import Clip, Request, load_pipeline
from reelquant.runtime.embeddings import EmbeddingCache
from reelquant.runtime.errors import BadInput
from reelquant.runtime.images import load_image
from reelquant.runtime.latents import SavedLatents
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.tokenizer import Tokenizer
from reelquant.runtime.video import load_video, read_clip
from tests.command_line import refused, run
from tests.conftest import TinyBundleMaker

Capture = pytest.CaptureFixture[str]
Pixels = NDArray[np.uint8]
PROMPT = "a red circle moves right on a white background"


def picture(height: int = 32, width: int = 32) -> Pixels:
    """Four quarters that differ, so that a turn or a mirror shows."""
    half, wide = height // 2, width // 2
    found = np.zeros((height, width, 3), np.uint8)
    found[:half, :wide], found[:half, wide:], found[half:, :wide] = 250, 170, 90
    return found


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
        i2v.generate(Request(PROMPT, image, seed=1))
    assert i2v.timer.seconds.keys() <= {"load"} and "text_encoder" not in i2v._loaded


def test_a_picture_that_was_opened_but_cannot_be_read(i2v: Pipeline) -> None:
    """Pillow reads no pixel before it must: here that is when the clip is asked for."""
    whole = io.BytesIO()
    Image.effect_noise((99, 99), 50).save(whole, "PNG")
    cut = Image.open(io.BytesIO(whole.getvalue()[:2000]))
    closed = Image.open(whole)
    closed.close()
    for image in (cut, closed):
        with pytest.raises(BadInput, match="the image cannot be read .*; open it again, or give its path"):
            i2v.settings(Request(PROMPT, image))


def test_a_video_may_be_a_path_an_array_or_pictures(t2v: Pipeline, tmp_path: Path) -> None:
    frames = np.stack([np.roll(picture(40, 48), i, 1) for i in range(12)])
    np.save(tmp_path / "video.npy", frames)
    given = (frames, str(tmp_path / "video.npy"), list(frames), [Image.fromarray(frame) for frame in frames])
    taken = [t2v.settings(Request(PROMPT, video=video, strength=0.5)) for video in given]
    for settings in taken:
        assert settings.skip == 2 and settings.video is not None and taken[0].video is not None
        assert settings.video.shape == (9, 32, 32, 3) and np.array_equal(settings.video, taken[0].video)
    assert t2v.settings(Request(PROMPT, video=frames)).skip == 4 - int(4 * 0.8)
    for video, said in (
        (frames[:5], "the video has 5 frames and 9 are wanted"),
        (frames.astype(np.float32), "an array of float32"),
        ("gone.mp4", "does not exist"),
        (7, "the video is a int; give a path, a list of pictures, or an array"),
        ([*frames[:8], frames[8] / 255], "frame 8 of the video is an array of float64"),
    ):
        wrong: Any = video
        with pytest.raises(BadInput, match=said):
            t2v.settings(Request(PROMPT, video=wrong))


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
        t2v.generate(replace(Request(PROMPT), **wrong))
    assert "text" not in t2v.timer.seconds


def test_numbers_of_numpy_are_numbers(t2v: Pipeline, tmp_path: Path) -> None:
    request = Request(PROMPT, seed=np.int64(3), steps=np.int32(2), frames=np.int16(9), guidance=np.float32(2))  # type: ignore[arg-type]
    t2v.generate(request).save(tmp_path / "clip.mp4")
    video = replace(request, video=np.zeros((9, 32, 32, 3), np.uint8), strength=np.float32(0.5))  # type: ignore[arg-type]
    assert json.dumps(t2v._provenance(video, t2v.settings(video)))


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
            t2v.generate(PROMPT, keep=keep)
    assert not t2v.timer.seconds


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a red circle \udcff moves left", "the prompt is not UTF-8 at character 14"),
        ("\ud83d alone", "the prompt is not UTF-8 at character 1"),
        ("\u200b", "the prompt is empty"),
        ("\u2800 \ufe0f\u00ad", "the prompt is empty"),
        ("一只猫在跑", "can read nothing of the prompt"),
        ("猫 狗", r"can read nothing of the prompt \(猫, 狗\)"),
    ],
)
def test_prompts_that_cannot_be_read(prompt: str, said: str, t2v: Pipeline) -> None:
    with pytest.raises(BadInput, match=said):
        t2v.settings(Request(prompt))
    if "nothing" not in said and "empty" not in said:
        with pytest.raises(BadInput, match=said.replace("prompt", "negative prompt")):
            t2v.settings(Request(PROMPT, negative_prompt=prompt))


def test_a_mark_that_is_only_in_the_vocabulary(t2v: Pipeline) -> None:
    """T5's rules also make one of what only looks like it: what counts is the id that the encoder gets."""
    for mark in ("</s>", "<pad>"):
        with pytest.raises(BadInput, match=f"the prompt holds {mark}, a mark"):
            t2v.settings(Request(f"a red {mark} circle"))


def test_a_mark_in_other_characters(tmp_path: Path) -> None:
    rules = build_tokenizer()
    rules.normalizer = NFKC()  # a part of what T5's own does
    rules.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(BadInput, match="the prompt holds ＜/s＞, a mark"):
        Tokenizer.open(tmp_path / "tokenizer.json", 24).check("a red ＜/s＞ circle")


@pytest.mark.parametrize("mark", ["</s>", "<pad>", "<extra_id_0>"])
def test_a_mark_of_the_tokenizers_own_would_end_the_prompt(mark: str, tmp_path: Path) -> None:
    """As transformers saves a T5 tokenizer, with its marks."""
    rules = build_tokenizer()
    rules.add_special_tokens(["<pad>", "</s>", "<unk>", "<extra_id_0>"])
    rules.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.open(tmp_path / "tokenizer.json", 24)
    assert tokenizer.check(PROMPT) == ()
    for allow_empty in (False, True):
        with pytest.raises(BadInput, match=f"the prompt holds {mark}, a mark of the tokenizer's own; leave it out"):
            tokenizer.check(f"a red {mark}circle", allow_empty=allow_empty)


def test_words_that_the_model_does_not_know_are_named(
    tiny_bundle: TinyBundleMaker, tmp_path: Path, capfd: Capture
) -> None:
    bundle, out = tiny_bundle("t2v").path, tmp_path / "a.npy"
    said = run(capfd, "generate", bundle, "a red 猫 circle 狗 moves left", "-o", out, "--seed", "1")
    assert "the model does not know 猫, 狗: it reads all such words alike" in said.err
    as_json = run(capfd, "generate", bundle, "a red 猫 circle", "-o", out, "--seed", "1", "--json")
    assert json.loads(as_json.out)["unknown_words"] == ["猫"] and "know" not in as_json.err
    against = run(capfd, "generate", bundle, PROMPT, "--negative-prompt", "狗", "-o", out, "--seed", "1", "--json")
    assert json.loads(against.out)["unknown_words"] == ["狗"]
    known = run(capfd, "generate", bundle, PROMPT, "-o", out, "--seed", "1")
    assert "know" not in known.err
    embedded = run(capfd, "embed", bundle, tmp_path / "kept", "a red 猫", "--json")
    assert json.loads(embedded.out)["unknown_words"] == {"a red 猫": ["猫"]}
    for command in (("generate", bundle, "red \udcff", "-o", out), ("embed", bundle, tmp_path / "kept", "red \udcff")):
        assert "the prompt is not UTF-8 at character 5" in refused(capfd, tmp_path, *command)


def test_a_file_of_prompts_may_begin_with_windows_mark(
    tiny_bundle: TinyBundleMaker, tmp_path: Path, capfd: Capture
) -> None:
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\r\n", encoding="utf-8-sig")
    ran = run(capfd, "embed", tiny_bundle("t2v").path, tmp_path / "kept", "--file", tmp_path / "prompts.txt", "--json")
    assert json.loads(ran.out)["unknown_words"] == {}


def test_a_missing_image_is_refused_before_the_text_encoder_runs(
    tiny_bundle: TinyBundleMaker, tmp_path: Path, capfd: Capture
) -> None:
    i2v, t2v, out = tiny_bundle("i2v").path, tiny_bundle("t2v").path, tmp_path / "a.mp4"
    kept = ("--embeddings", tmp_path / "kept")  # which would be there, had it run
    for bundle, option in ((i2v, "--image"), (t2v, "--video")):
        said = refused(capfd, tmp_path, "generate", bundle, PROMPT, option, "gone.mp4", "-o", out, *kept)
        assert "does not exist" in said
    assert "there is none" in refused(capfd, tmp_path, "generate", t2v, PROMPT, "--strength", "0.3", "-o", out, *kept)


def turned(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write the a, b, c, d of a display matrix into an .mp4, as a phone does (ISO 14496-12, tkhd)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((1, 0, 0, 1), lambda frame: frame),
        ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1)),  # a phone held upright: a quarter to the right
        ((0, -1, 1, 0), np.rot90),
        ((-1, 0, 0, -1), lambda frame: np.rot90(frame, 2)),
        ((-1, 0, 0, 1), np.fliplr),
    ],
)
def test_a_video_is_read_as_a_player_shows_it(matrix: Any, shown: Any, tmp_path: Path) -> None:
    frames = np.stack([picture(32, 48)] * 3)
    Clip(frames, 8).save(tmp_path / "phone.mp4")
    turned(tmp_path / "phone.mp4", matrix)
    wanted = shown(frames[0])
    found = read_clip(tmp_path / "phone.mp4").frames
    assert found.shape == (3, *wanted.shape)
    assert np.abs(found[0].astype(int) - wanted).mean() < 3
    again = load_video(tmp_path / "phone.mp4", 2, *wanted.shape[:2])
    assert np.array_equal(again, found[:2])


def test_a_long_video_is_read_no_further_than_needed(tmp_path: Path) -> None:
    Clip(np.stack([picture(480, 640)] * 120), 8).save(tmp_path / "long.mp4")
    tracemalloc.start()
    found = load_video(tmp_path / "long.mp4", 9, 32, 32)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.shape == (9, 32, 32, 3) and peak < 6 * 480 * 640 * 3  # not 120 frames, nor 9
    data = (tmp_path / "long.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[:-400])  # its index comes first
    assert load_video(tmp_path / "cut.mp4", 9, 32, 32).shape == found.shape
    with pytest.raises(BadInput, match="cut.mp4 is damaged"):
        read_clip(tmp_path / "cut.mp4")


def test_a_trimmed_video_is_whole(tmp_path: Path) -> None:
    """A phone's cut keeps what goes before it in the file, and an edit list says where the video begins."""
    Clip(np.stack([np.full((32, 32, 3), 20 * i, np.uint8) for i in range(12)]), 8).save(tmp_path / "whole.mp4")
    with (
        av.open(tmp_path / "whole.mp4") as whole,
        av.open(tmp_path / "cut.mp4", "w", options={"avoid_negative_ts": "disabled", "use_editlist": "1"}) as cut,
    ):
        stream = whole.streams.video[0]
        copied, before = (
            cut.add_stream_from_template(stream),
            int(Fraction(4, 8) / (stream.time_base or Fraction(1, 8))),
        )
        for packet in whole.demux(stream):
            if packet.pts is not None and packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - before, packet.dts - before, copied
                cut.mux(packet)
    found = read_clip(tmp_path / "cut.mp4").frames
    assert len(found) == 8 and abs(found[0].mean() - 80) < 4
    assert np.array_equal(load_video(tmp_path / "cut.mp4", 8, 32, 32), found)


@pytest.mark.parametrize(
    "name",
    ["2026-11-25T10:00:00.mp4", "http:x.mp4", "take %03d.mp4", "-o.mp4", "|x.mp4", "a\nb.mp4", "\udcff.mp4", "é.MP4"],
)
def test_any_name_of_a_file_will_do(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    clip = Clip(np.stack([picture()] * 3), 8, {"seed": 3})
    (tmp_path / "to:day").mkdir()
    for path in (Path(name), Path("to:day", name)):
        clip.save(path)
        assert path.is_file() and read_clip(path).provenance == {"seed": 3}
        assert load_video(str(path), 3, 32, 32).shape == (3, 32, 32, 3)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 5), (33, 17), (32, 31)])
def test_clips_of_any_size_are_saved(size: tuple[int, int], tmp_path: Path) -> None:
    clip = Clip(np.full((2, *size, 3), 200, np.uint8), 8)
    for suffix in (".mp4", ".gif", ".png", ".npy"):
        clip.save(str(tmp_path / f"clip{suffix}"))
    found = read_clip(tmp_path / "clip.mp4").frames
    assert found.shape == clip.frames.shape and np.abs(found.astype(int) - 200).max() < 8


def test_a_name_that_stdout_cannot_print(
    tiny_bundle: TinyBundleMaker, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    ran = run(capfd, "generate", tiny_bundle("t2v").path, PROMPT, "-o", tmp_path / "é\udcff.npy", "--seed", "1")
    assert ran.code == 0, ran.err


def test_what_cannot_be_encoded_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"1 frames of 1x70000 cannot be written as .gif"):
        Clip(np.zeros((1, 1, 70000, 3), np.uint8), 8).save(tmp_path / "wide.gif")
    for frames, fps in (([1], 8), (np.zeros((1, 2, 2, 3), np.uint8), 7.5)):
        wrong: Any = frames
        with pytest.raises((TypeError, ValueError), match=r"frames are a list|fps is 7.5, not a whole number"):
            Clip(wrong, fps)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"1 frames of 2x20000 cannot be written as .mp4 .*; save them as .npy"):
        Clip(np.zeros((1, 2, 20000, 3), np.uint8), 8).save(tmp_path / "wide.mp4")
    assert not list(tmp_path.iterdir())


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
