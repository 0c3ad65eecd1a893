"""A clip that is written while it is decoded is the clip that is decoded whole."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from reelquant.runtime.errors import AccuracyError, BadInput
from reelquant.runtime.media.stream import ClipStream
from reelquant.runtime.media.video import Clip
from reelquant.runtime.media.writers import SUFFIXES
from reelquant.runtime.sizes import Size

FRAMES = np.random.default_rng(0).integers(0, 256, (17, 32, 48, 3), np.uint8)
MADE = {"prompt": "a circle", "seed": 3}


def stream(chunks: Iterator[NDArray[np.uint8]]) -> ClipStream:
    return ClipStream(chunks, Size(17, 32, 48), 8, MADE, lambda: {"decode": 1.5})


def in_chunks() -> Iterator[NDArray[np.uint8]]:
    yield from (FRAMES[:9], FRAMES[9:])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_file_is_that_of_the_whole_clip(suffix: str, tmp_path: Path) -> None:
    Clip(FRAMES, 8, {**MADE, "note": 1}).save(tmp_path / f"whole{suffix}")
    saved = stream(in_chunks()).save(tmp_path / f"streamed{suffix}", {"note": 1})
    assert (tmp_path / f"whole{suffix}").read_bytes() == (tmp_path / f"streamed{suffix}").read_bytes()
    assert saved.sha256 == hashlib.sha256(FRAMES.tobytes()).hexdigest() == stream(in_chunks()).clip().sha256
    assert saved.flaws == () and saved.provenance == {**MADE, "note": 1}
    assert saved.seconds["decode"] == 1.5 and saved.seconds["write"] >= 0


def test_frames_are_written_while_later_ones_are_decoded(tmp_path: Path) -> None:
    """The last chunk is not decoded before the first has left for the file, and no more than a few chunks wait."""
    taken = threading.Event()
    size, count = Size(17, 32, 48), 0

    class Noting(np.ndarray):
        """Frames that say when a writer takes them."""

        def __iter__(self) -> Iterator[NDArray[np.uint8]]:
            taken.set()
            return iter(np.asarray(self))

    def slow() -> Iterator[NDArray[np.uint8]]:
        nonlocal count
        yield FRAMES[:9].view(Noting)
        assert taken.wait(20), "the first chunk waits for the last"
        for start in range(9, 17, 2):
            count += 1
            yield FRAMES[start : start + 2]

    saved = ClipStream(slow(), size, 8, MADE, dict).save(tmp_path / "clip.mp4")
    assert count == 4 and saved.size == size


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_decoding_that_fails_leaves_no_file(suffix: str, tmp_path: Path) -> None:
    def broken() -> Iterator[NDArray[np.uint8]]:
        yield FRAMES[:9]
        raise AccuracyError("the frames are not finite")

    with pytest.raises(AccuracyError, match="not finite"):
        stream(broken()).save(tmp_path / f"clip{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_writing_that_fails_ends_the_decoding(tmp_path: Path) -> None:
    """H.264 has no room for such sides, which the first frame shows: nobody decodes on for a file that cannot be."""
    decoded = 0

    def chunks() -> Iterator[NDArray[np.uint8]]:
        nonlocal decoded
        while decoded < 1000:
            decoded += 1
            yield np.zeros((1, 16, 70_000, 3), np.uint8)

    with pytest.raises(BadInput, match=r"cannot be written as \.mp4"):
        ClipStream(chunks(), Size(1000, 16, 70_000), 8, MADE, dict).save(tmp_path / "clip.mp4")
    assert decoded < 1000 and list(tmp_path.iterdir()) == []


def test_a_name_that_cannot_be_is_refused_before_a_frame_is_decoded(tmp_path: Path) -> None:
    def never() -> Iterator[NDArray[np.uint8]]:
        raise AssertionError("a frame was decoded")
        yield

    with pytest.raises(BadInput, match="does not end in one of"):
        stream(never()).save(tmp_path / "clip.avi")
