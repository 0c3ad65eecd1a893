"""Clips of any origin and name: videos as phones write them, names that URLs and shells mistake, sizes of any parity."""

from __future__ import annotations

import io
import struct
import sys
import tracemalloc
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from reelquant.runtime import Clip
from reelquant.runtime.errors import BadInput
from reelquant.runtime.media.video import load_video, read_clip
from tests.command_line import run
from tests.conftest import TinyBundleMaker
from tests.runtime.pictures import picture

Capture = pytest.CaptureFixture[str]
PROMPT = "a red circle moves right on a white background"


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


def test_addresses_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for address in ("https://host/clip.mp4", "s3://bucket/clip.mp4"):
        with pytest.raises(BadInput, match="is an address, and clips are saved as files"):
            Clip(np.stack([picture()] * 3), 8).save(address)
        with pytest.raises(BadInput, match="does not exist; download it, and name the file"):
            load_video(address, 3, 32, 32)
    assert not list(tmp_path.iterdir())
