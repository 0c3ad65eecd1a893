from __future__ import annotations

import hashlib
import json
import os
import pickle
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from reelquant.runtime.errors import BadInput
from reelquant.runtime.media import video
from reelquant.runtime.media.video import Clip, read_clip
from reelquant.runtime.media.writers import SUFFIXES, check_output, contact_sheet
from tests.small_disk import run_with_small_disks

PROVENANCE = {"prompt": 'a "red" círcle\nmoves', "seed": 7, "engines": {"transformer": ["openvino", "2026.4"]}}
SATURATED = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (45, 75, 225)}


def moving(frames: int = 9, height: int = 96, width: int = 64) -> NDArray[np.uint8]:
    """Flat saturated colours, whose border moves."""
    clip = np.empty((frames, height, width, 3), np.uint8)
    for i in range(frames):
        clip[i, :, : 16 + 2 * i] = SATURATED["red"]
        clip[i, :, 16 + 2 * i :] = SATURATED["blue"]
    return clip


def noisy(frames: int = 9, size: int = 96) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (frames, size, size, 3), dtype=np.uint8)


def test_sha256_is_that_of_the_pixels() -> None:
    frames = moving()
    assert Clip(frames, 8).sha256 == hashlib.sha256(frames.tobytes()).hexdigest()
    assert Clip(frames[:, ::-1], 8).sha256 == hashlib.sha256(frames[:, ::-1].tobytes()).hexdigest()


@pytest.mark.parametrize("frames", [np.zeros((2, 4, 4, 3), np.float32), np.zeros((4, 4, 3), np.uint8),
                                    np.zeros((2, 4, 4, 1), np.uint8), np.zeros((0, 4, 4, 3), np.uint8)])  # fmt: skip
def test_other_arrays_are_not_clips(frames: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="not uint8"):
        Clip(frames, 8)


def test_mp4_round_trip(tmp_path: Path) -> None:
    clip = Clip(moving(), 8, PROVENANCE)
    clip.save(tmp_path / "clip.mp4")
    back = read_clip(tmp_path / "clip.mp4")
    assert back.frames.shape == clip.frames.shape and back.frames.dtype == np.uint8
    assert (back.fps, back.provenance) == (8, PROVENANCE)
    # The border's colour is shared by two pixels in 4:2:0; beside it every colour is kept.
    wrong = np.abs(back.frames.astype(int) - clip.frames).max(axis=3)
    assert (wrong > 6).mean() < 0.1 and wrong[:, :, :12].max() <= 6 and wrong[:, :, 40:].max() <= 6


@pytest.mark.parametrize("colour", SATURATED)
def test_mp4_says_its_colours_as_they_are(tmp_path: Path, colour: str) -> None:
    rgb = np.array(SATURATED[colour])
    Clip(np.full((3, 32, 32, 3), rgb, np.uint8), 8).save(tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range) == (1, 1, 1, 1)
        planes = next(container.decode(video=0)).to_ndarray(format="yuv420p")
    luma = 0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2]
    expected = [16 + luma * 219 / 255, 128 + (rgb[2] - luma) / 1.8556 * 224 / 255,
                128 + (rgb[0] - luma) / 1.5748 * 224 / 255]  # fmt: skip
    found = [planes[8, 8], planes[32 + 4, 8], planes[40 + 4, 8]]
    assert np.abs(np.array(found, float) - expected).max() <= 2


def test_mp4_is_what_players_and_browsers_take(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    Clip(moving(height=480), 12, PROVENANCE).save(path)  # high enough for x264 to use threads
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    assert b" threads=1 " in data and b"crf=17.0" in data
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.frames == 9 and stream.average_rate == Fraction(12)
        assert (stream.duration or 0) * (stream.time_base or 0) == Fraction(9, 12)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_same_clip_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    Clip(noisy(frames=17), 8, PROVENANCE).save(tmp_path / f"a{suffix}")
    Clip(noisy(frames=17), 8, dict(reversed(PROVENANCE.items()))).save(tmp_path / f"b{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("shape", [(1, 16, 16, 3), (2, 16, 272, 3)])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_smallest_clips(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    Clip(np.full(shape, 99, np.uint8), 8).save(tmp_path / f"x{suffix}")
    if suffix in (".mp4", ".npy"):
        assert read_clip(tmp_path / f"x{suffix}").frames.shape == shape


def test_gif_has_the_clip_and_its_length(tmp_path: Path) -> None:
    clip = Clip(moving(), 8, PROVENANCE)
    clip.save(tmp_path / "clip.GIF")
    with Image.open(tmp_path / "clip.GIF") as image:
        assert image.format == "GIF" and image.info["loop"] == 0
        assert json.loads(image.info["comment"]) == PROVENANCE
        durations, wrong = [], 0
        for i in range(getattr(image, "n_frames", 1)):
            image.seek(i)
            durations.append(image.info["duration"])
            wrong = max(wrong, np.abs(np.asarray(image.convert("RGB")).astype(int) - clip.frames[i]).max())
    assert len(durations) == 9 and set(durations) == {120, 130} and sum(durations) == 1120 and wrong <= 8


def test_png_shows_every_frame_in_order(tmp_path: Path) -> None:
    clip = Clip(noisy(frames=5, size=16), 8, PROVENANCE)
    clip.save(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        sheet = np.asarray(image)
        assert json.loads(image.info["comment"]) == PROVENANCE
    assert sheet.shape == (48, 32, 3)
    cells = [sheet[y : y + 16, x : x + 16] for y in (0, 16, 32) for x in (0, 16)]
    assert np.array_equal(np.stack(cells[:5]), clip.frames) and not cells[5].any()
    assert contact_sheet(np.zeros((49, 480, 720, 3), np.uint8)).shape == (9 * 480, 6 * 720, 3)


def test_npy_has_the_exact_frames(tmp_path: Path) -> None:
    clip = Clip(noisy(), 24, PROVENANCE)
    clip.save(tmp_path / "clip.npy")
    assert np.array_equal(np.load(tmp_path / "clip.npy", allow_pickle=False), clip.frames)
    back = read_clip(tmp_path / "clip.npy")
    assert back.sha256 == clip.sha256 and (back.fps, back.provenance) == (8, {})


@pytest.mark.parametrize("name", ["clip", "clip.avi", "clip.mp4.txt", ".mp4"])
def test_other_suffixes_are_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    for act in (check_output, Clip(moving(), 8).save):
        with pytest.raises(BadInput, match=r"does not end in one of \.mp4, \.gif, \.png, \.npy; rename"):
            act(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe.mp4")
    for name, text in {"folder.mp4": "is a folder", "pipe.mp4": "device or pipe", "file/x.mp4": "not a folder|Not a dir",
                       "file/deeper/x.mp4": "not a folder|Not a dir", "é" * 126 + ".mp4": "too long",
                       "y" * 300 + ".mp4": "too long"}.items():  # fmt: skip
        with pytest.raises(BadInput, match=text):
            check_output(tmp_path / name)
    for name in ("new.mp4", "a/b/new.MP4", "z" * 227 + ".mp4"):
        assert check_output(tmp_path / name) == tmp_path / name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.mp4", "pipe.mp4"]
    Clip(moving(1), 8).save(tmp_path / ("z" * 227 + ".mp4"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(BadInput, match="no permission in"):
        check_output(tmp_path / "a/b/new.mp4")


def test_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")
    monkeypatch.setattr(av.VideoFrame, "from_ndarray", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Clip(moving(), 8).save(path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


FULL_DISK = """
import subprocess, sys
from pathlib import Path
import numpy as np
from reelquant.runtime.errors import BadInput
from reelquant.runtime.media.video import Clip
from reelquant.runtime.media.writers import SUFFIXES

clip = Clip(np.load(sys.argv[1]), 8)
for whole in sorted(Path(sys.argv[1]).parent.glob("whole.*")):
    need = -(-whole.stat().st_size // 4096) * 4
    for size in (4, 64, need - 4, need):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", "/mnt"], check=True)
        path = Path("/mnt") / whole.name
        try:
            clip.save(path)
            said = "saved" if path.read_bytes() == whole.read_bytes() else "DAMAGED"
        except BadInput as error:
            said = str(error)
        print(f"{size >= need}|{said}|{[p.name for p in Path('/mnt').iterdir()]}")
        subprocess.run(["umount", "/mnt"], check=True)
"""


def test_a_really_full_disk(tmp_path: Path) -> None:
    """In a mount namespace of its own, with disks from far too small to just large enough."""
    clip = Clip(noisy(), 8)
    np.save(tmp_path / "frames.npy", clip.frames)
    for suffix in SUFFIXES:
        clip.save(tmp_path / f"whole{suffix}")
    ran = run_with_small_disks(FULL_DISK, tmp_path / "frames.npy")
    assert ran.returncode == 0, ran.stderr
    lines = [line.split("|") for line in ran.stdout.splitlines()]
    assert len(lines) == 4 * len(SUFFIXES)
    for enough, said, left in lines:
        if enough == "True":
            assert said == "saved"
        else:
            assert said.startswith("the disk is full: /mnt/whole.") and left == "[]"


def test_cut_or_foreign_mp4(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    for frames in (noisy(), np.full((17, 96, 96, 3), 90, np.uint8)):
        Clip(frames, 8).save(path)
        data = path.read_bytes()
        # Cuts between two frames of the flat clip (13 bytes each) leave a video that decodes without an error.
        for length in (10, 600, len(data) // 2, *range(len(data) - 40, len(data))):
            path.write_bytes(data[:length])
            with pytest.raises(BadInput, match=r"clip .*clip\.mp4 is damaged or not what its suffix says"):
                read_clip(path)
    path.write_bytes(b"not a video at all")
    with pytest.raises(BadInput, match="damaged or not"):
        read_clip(path)


def test_mp4_without_our_comment(tmp_path: Path) -> None:
    for comment in ("", "holiday", "[1, 2]"):
        with av.open(str(tmp_path / "x.mp4"), "w") as container:
            container.metadata["comment"] = comment
            stream = container.add_stream("libx264", rate=Fraction(30000, 1001))
            stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moving(1, 32, 32)[0])))
            container.mux(stream.encode(None))
        back = read_clip(tmp_path / "x.mp4")
        assert (back.fps, back.provenance, back.frames.shape) == (30, {}, (1, 32, 32, 3))


def test_npy_never_runs_code_nor_trusts_its_header(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (ran,)

    path = tmp_path / "clip.npy"
    with path.open("wb") as handle:
        np.save(handle, np.array([Trap()], dtype=object), allow_pickle=True)
    hostile = [path.read_bytes(), pickle.dumps(Trap())]
    np.save(path, moving())
    hostile += [path.read_bytes()[:-1], path.read_bytes().replace(b"(9, 96, 64, 3), }  ", b"(9999999, 96, 64, 3), }")]
    np.save(path, moving().astype(np.float32))
    hostile += [path.read_bytes(), b"PK\x03\x04" + bytes(100)]
    for data in hostile:
        path.write_bytes(data)
        with pytest.raises(BadInput, match="damaged or not what its suffix says"):
            read_clip(path)
    assert not ran.exists()


def test_clips_too_large_to_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Clip(moving(), 8).save(tmp_path / "x.mp4")
    monkeypatch.setattr(video, "MAX_CLIP_BYTES", moving().nbytes)
    read_clip(tmp_path / "x.mp4")
    monkeypatch.setattr(video, "MAX_CLIP_BYTES", moving().nbytes - 1)
    with pytest.raises(BadInput, match="bytes of pixels"):
        read_clip(tmp_path / "x.mp4")


def test_clips_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "empty.mp4").touch()
    for name, text in {"none.mp4": "does not exist", "folder.npy": "is a folder", "empty.mp4": "is empty",
                       "clip.gif": r"does not end in \.mp4 or \.npy"}.items():  # fmt: skip
        with pytest.raises(BadInput, match=text):
            read_clip(tmp_path / name)
