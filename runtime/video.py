"""A finished clip: what it is, and how it becomes a file and is read back."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from reelquant.runtime.atomic import npy_bytes, partial_file
from reelquant.runtime.errors import BadInput
from reelquant.runtime.flaws import flaws
from reelquant.runtime.images import readable_file

SUFFIXES = (".mp4", ".gif", ".png", ".npy")
NPY_FPS = 8  # CogVideoX's own; a .npy file has no place for a frame rate
CRF = "17"
MAX_FILE_BYTES = MAX_CLIP_BYTES = 2 * 2**30


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames uint8 RGB [frames, height, width, 3], shown at ``fps``; ``provenance`` is JSON and says how it was made."""

    frames: NDArray[np.uint8]
    fps: int
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.frames.dtype != np.uint8 or self.frames.ndim != 4 or self.frames.shape[3] != 3 or not self.frames.size:
            found = f"{self.frames.dtype} {self.frames.shape}"
            raise ValueError(f"frames are {found}, not uint8 [frames, height, width, 3]")
        if self.fps < 1:
            raise ValueError(f"fps is {self.fps}, not at least 1")

    @property
    def sha256(self) -> str:
        """Of the frames' bytes in C order and nothing else: equal for equal pixels, whatever file they came from."""
        return hashlib.sha256(np.ascontiguousarray(self.frames).data).hexdigest()

    @property
    def flaws(self) -> tuple[str, ...]:
        """What a broken sampling looks like, as :func:`reelquant.runtime.flaws.flaws` says; usually nothing."""
        return flaws(self.frames)

    def save(self, path: Path) -> None:
        """Write the clip whole or not at all; the suffix chooses the form, and the same clip gives the same bytes.

        ``.mp4`` is H.264, ``.gif`` loops, ``.png`` is a contact sheet (each with the provenance as its comment), and
        ``.npy`` has the exact frames.

        Raises:
            BadInput: the suffix is another, ``path`` cannot be written, or the disk is full.
        """
        writer = _WRITERS[check_output(path).suffix.lower()]
        with partial_file(path) as temporary:
            writer(self, temporary, json.dumps(self.provenance, sort_keys=True))


def check_output(path: Path, suffixes: tuple[str, ...] = SUFFIXES) -> Path:
    """Return ``path`` when a clip could be saved there; to be asked before hours of work, not after.

    Raises:
        BadInput: its suffix is not one of ``suffixes``, it is a folder or device, or its folder cannot be written.
    """
    if path.suffix.lower() not in suffixes:
        raise BadInput(f"output {path} does not end in one of {', '.join(suffixes)}; rename it")
    try:
        if path.is_dir():
            raise BadInput(f"output {path} is a folder; name a file in it")
        if path.exists() and not path.is_file():
            raise BadInput(f"output {path} is a device or pipe; name a regular file")
        folder = path.absolute().parent
        while not folder.exists():
            folder = folder.parent
        room = os.pathconf(folder, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    except OSError as error:
        raise BadInput(f"output {path} cannot be used: {error.strerror}; choose another place") from error
    if not folder.is_dir():
        raise BadInput(f"output {path} is inside {folder}, which is not a folder; choose another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadInput(f"output {path} cannot be written: no permission in {folder}; choose another place")
    if len(os.fsencode(path.name)) > room - 24:  # the temporary name is that much longer
        raise BadInput(f"output {path} has a name longer than {room - 24} bytes; shorten it")
    return path


def read_clip(path: Path) -> Clip:
    """Read a clip from an .mp4 (any video PyAV decodes) or .npy file; .npy gives 8 fps and no provenance.

    Raises:
        BadInput: there is no such file, or it is not a whole clip of at most 2 GiB of pixels.
    """
    if path.suffix.lower() not in (".mp4", ".npy"):
        raise BadInput(f"clip {path} does not end in .mp4 or .npy, the two forms that can be read back")
    readable_file(path, "clip", MAX_FILE_BYTES)
    try:
        return _read_npy(path) if path.suffix.lower() == ".npy" else _read_mp4(path)
    except (FFmpegError, OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise BadInput(f"clip {path} is damaged or not what its suffix says ({why}); make it again") from error


def contact_sheet(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [f, h, w, 3] → one uint8 [H, W, 3] about as wide as high, frames row by row, black where none is left."""
    count, height, width, _ = frames.shape
    columns = min(count, max(1, round(math.sqrt(count * height / width))))
    rows = -(-count // columns)
    padded = np.zeros((rows * columns, height, width, 3), np.uint8)
    padded[:count] = frames
    grid = padded.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, 3)


def _write_mp4(clip: Clip, path: Path, comment: str) -> None:
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(str(path), "w", format="mp4", options=options) as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=clip.fps, options={"crf": CRF})
        codec = stream.codec_context
        codec.height, codec.width = clip.frames.shape[1:3]
        codec.pix_fmt = "yuv420p"
        codec.thread_count = 1  # x264's rate control, so its bytes, depend on the number of threads
        # Said outright, because players guess the matrix from the height and would shift small clips' colours.
        codec.colorspace, codec.color_range = Colorspace.ITU709, ColorRange.MPEG
        codec.color_primaries, codec.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        for rgb in clip.frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _write_gif(clip: Clip, path: Path, comment: str) -> None:
    # GIF counts hundredths of a second; rounding each frame's end, not its length, keeps the whole clip's length.
    ends = np.rint(np.arange(len(clip.frames) + 1) * 100 / clip.fps)
    first, *rest = (Image.fromarray(frame) for frame in clip.frames)
    first.save(path, "GIF", save_all=True, append_images=rest, duration=[int(d) * 10 for d in np.diff(ends)], loop=0,
               comment=comment.encode())  # fmt: skip


def _write_png(clip: Clip, path: Path, comment: str) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", comment)
    Image.fromarray(contact_sheet(clip.frames)).save(path, "PNG", pnginfo=text)


def _write_npy(clip: Clip, path: Path, comment: str) -> None:
    path.write_bytes(npy_bytes(clip.frames))


def _read_npy(path: Path) -> Clip:
    # Mapped: never unpickles, and a header which promises more than the file holds is refused before any allocation.
    return Clip(np.array(open_memmap(path, mode="r")), NPY_FPS)


def _read_mp4(path: Path) -> Clip:
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("it has no video")
        stream = container.streams.video[0]
        frames: list[NDArray[np.uint8]] = []
        for frame in container.decode(stream):
            if (len(frames) + 1) * frame.height * frame.width * 3 > MAX_CLIP_BYTES:
                raise BadInput(f"clip {path} has more than {MAX_CLIP_BYTES} bytes of pixels; cut it first")
            frames.append(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8))
        if not frames or len(frames) < stream.frames:
            raise ValueError(f"{len(frames)} of {stream.frames} frames can be decoded")
        comment = container.metadata.get("comment", "")
        return Clip(np.stack(frames), max(1, round(stream.average_rate or Fraction(NPY_FPS))), _provenance(comment))


def _provenance(comment: str) -> dict[str, Any]:
    try:
        found = json.loads(comment)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


_WRITERS: dict[str, Callable[[Clip, Path, str], None]] = {
    ".mp4": _write_mp4,
    ".gif": _write_gif,
    ".png": _write_png,
    ".npy": _write_npy,
}
