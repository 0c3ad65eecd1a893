"""A finished clip: what it is, and how it is read back from a file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any, TypeAlias

import av
import numpy as np
from av.error import FFmpegError
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from PIL import Image

from reelquant.runtime.errors import BadInput
from reelquant.runtime.media.flaws import flaws
from reelquant.runtime.media.images import Picture, checked_pixels, load_image, readable_file
from reelquant.runtime.media.writers import check_output, write_frames
from reelquant.runtime.sizes import Size

# A file's path, uint8 [frames, height, width, 3], or pictures one after the other.
Video: TypeAlias = str | os.PathLike[str] | NDArray[np.uint8] | Sequence[Picture]
NPY_FPS = 8  # CogVideoX's own; a .npy file has no place for a frame rate
MAX_FILE_BYTES = MAX_CLIP_BYTES = 2 * 2**30


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames uint8 RGB [frames, height, width, 3], shown at ``fps``; ``provenance`` is JSON and says how it was made, and
    ``seconds`` what each stage of that took here.
    """

    frames: NDArray[np.uint8]
    fps: int
    provenance: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.frames, np.ndarray):
            raise TypeError(f"frames are a {type(self.frames).__name__}, not an array")
        if self.frames.dtype != np.uint8 or self.frames.ndim != 4 or self.frames.shape[3] != 3 or not self.frames.size:
            found = f"{self.frames.dtype} {self.frames.shape}"
            raise ValueError(f"frames are {found}, not uint8 [frames, height, width, 3]")
        if not isinstance(self.fps, Integral) or self.fps < 1:
            raise ValueError(f"fps is {self.fps!r}, not a whole number of at least 1")

    @property
    def sha256(self) -> str:
        """Of the frames' bytes in C order and nothing else: equal for equal pixels, whatever file they came from."""
        return hashlib.sha256(np.ascontiguousarray(self.frames).data).hexdigest()

    @property
    def flaws(self) -> tuple[str, ...]:
        """What a broken sampling looks like, as :func:`reelquant.runtime.media.flaws.flaws` says; usually nothing."""
        return flaws(self.frames)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the clip whole or not at all; the suffix chooses the form, and the same clip gives the same bytes.

        ``.mp4`` is H.264, ``.gif`` loops, ``.png`` is a contact sheet (each with the provenance as its comment), and
        ``.npy`` has the exact frames.

        Raises:
            BadInput: the suffix is another, ``path`` cannot be written, or the disk is full.
        """
        count, height, width, _ = self.frames.shape
        write_frames(check_output(path), iter(self.frames), Size(count, height, width), self.fps, self.provenance)


def read_clip(path: str | os.PathLike[str]) -> Clip:
    """Read a clip from an .mp4 (any video PyAV decodes) or .npy file; .npy gives 8 fps and no provenance. Frames are
    turned as a player would show them.

    Raises:
        BadInput: there is no such file, or it is not a whole clip of at most 2 GiB of pixels.
    """
    with _opened(Path(path)) as reader:
        frames, size = [], 0
        for frame in reader.frames():
            size += frame.nbytes
            if size > MAX_CLIP_BYTES:
                raise BadInput(f"clip {path} has more than {MAX_CLIP_BYTES} bytes of pixels; cut it first")
            frames.append(frame)
        return Clip(np.stack(frames), reader.fps, reader.provenance)


def load_video(video: Video, frames: int, height: int, width: int) -> NDArray[np.uint8]:
    """The first ``frames`` frames of a video as uint8 RGB [frames, height, width, 3], each turned as a player would show
    it and resized as :func:`reelquant.runtime.media.images.load_image` does. Nothing is decoded beyond them, and no more than one is held
    in the file's own size.

    Raises:
        BadInput: a file is missing or damaged, an array or picture is of another type, or there are too few frames.
    """
    if isinstance(video, str | os.PathLike):
        with _opened(Path(video)) as reader:
            taken = [load_image(frame, height, width) for frame in islice(reader.frames(), frames)]
    elif isinstance(video, list | tuple):
        listed = enumerate(video[:frames])
        taken = [load_image(picture, height, width, f"frame {i} of the video") for i, picture in listed]
    else:
        pixels = checked_pixels(video, "the video", 4)
        taken = [load_image(frame, height, width) for frame in pixels[:frames]]
    if len(taken) < frames:
        raise BadInput(f"the video has {len(taken)} frames and {frames} are wanted; ask for fewer with --frames")
    return np.stack(taken)


def read_provenance(path: str | os.PathLike[str]) -> dict[str, Any]:
    """How a clip was made, as :meth:`Clip.save` wrote it into an .mp4, .gif or .png; empty where the file does not say.

    Raises:
        BadInput: there is no such file, it is damaged, or its form holds no provenance.
    """
    path = Path(path)
    if path.suffix.lower() not in (".mp4", ".gif", ".png"):
        raise BadInput(f"{path} does not end in .mp4, .gif or .png, the forms that say how a clip was made")
    if path.suffix.lower() == ".mp4":
        with _opened(path) as reader:
            return reader.provenance
    readable_file(path, "clip", MAX_FILE_BYTES)
    try:
        with path.open("rb") as file, Image.open(file, formats=["GIF", "PNG"]) as image:
            comment = image.info.get("comment", "")
    except (OSError, ValueError) as error:
        raise BadInput(f"clip {path} is damaged or not what its suffix says ({error}); make it again") from error
    return _provenance(comment.decode("utf-8", "replace") if isinstance(comment, bytes) else str(comment))


@dataclass(frozen=True)
class _Reader:
    """An opened clip: its frames one by one, uint8 [height, width, 3]; reading them to the end finds what is missing."""

    frames: Callable[[], Iterator[NDArray[np.uint8]]]
    fps: int
    provenance: dict[str, Any]


@contextmanager
def _opened(path: Path) -> Iterator[_Reader]:
    """Raises:
    BadInput: there is no such file, or it is damaged, which may be found while its frames are read.
    """
    if path.suffix.lower() not in (".mp4", ".npy"):
        raise BadInput(f"clip {path} does not end in .mp4 or .npy, the two forms that can be read back")
    readable_file(path, "clip", MAX_FILE_BYTES)
    try:
        with path.open("rb") as file:
            if path.suffix.lower() == ".npy":
                # Mapped: never unpickles, and a header which promises more than the file holds is refused before any
                # allocation.
                stored = open_memmap(path, mode="r")
                if stored.dtype != np.uint8 or stored.ndim != 4 or stored.shape[3] != 3 or not stored.size:
                    raise ValueError(
                        f"it has {stored.dtype} {list(stored.shape)}, not uint8 [frames, height, width, 3]"
                    )
                yield _Reader(lambda: (np.array(frame) for frame in stored), NPY_FPS, {})
                return
            with av.open(file, "r") as container:  # the file and not its name, which FFmpeg might read as a protocol
                if not container.streams.video:
                    raise ValueError("it has no video")
                stream = container.streams.video[0]
                fps = max(1, round(stream.average_rate or Fraction(NPY_FPS)))
                made = _provenance(container.metadata.get("comment", ""))
                yield _Reader(lambda: _decoded(container, stream), fps, made)
    except BadInput:
        raise
    except (FFmpegError, OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise BadInput(f"clip {path} is damaged or not what its suffix says ({why}); make it again") from error


def _decoded(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[NDArray[np.uint8]]:
    """Raises:
    ValueError: no frame can be decoded, or fewer than the file promises, that take less time than it promises.
    """
    count, time, step = 0, 0, 0
    for frame in container.decode(stream):
        count, step = count + 1, frame.duration or 0
        time += step
        yield _shown(frame)
    # The time as well as the count: of a trimmed video, frames before the cut are counted that no player shows.
    if not count or (count < stream.frames and time + step / 2 < (stream.duration or 0)):
        raise ValueError(f"{count} of {stream.frames} frames can be decoded")


def _shown(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """A frame's pixels as a player shows them: turned and mirrored by the display matrix that phones write."""
    pixels = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    stored: Any = frame.side_data.get("DISPLAYMATRIX")
    if stored is None:
        return pixels
    # Row by row a b u, c d v, x y w: a pixel at (p, q) is shown at (a p + c q, b p + d q) (ISO 14496-12, 8.3.2).
    a, b, _, c, d = np.frombuffer(bytes(stored), np.int32)[:5]
    if abs(int(b)) > abs(int(a)):  # a quarter turn: x and y change places
        pixels = pixels.transpose(1, 0, 2)
        a, d = c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _provenance(comment: str) -> dict[str, Any]:
    try:
        found = json.loads(comment)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}
