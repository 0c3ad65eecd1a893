"""Frames → a file, each as it comes: no form but the contact sheet holds more of a clip than it must."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace
from numpy.lib.format import write_array_header_1_0
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from reelquant.runtime.errors import BadInput
from reelquant.runtime.files.atomic import check_writable, partial_file
from reelquant.runtime.media.images import URL
from reelquant.runtime.sizes import Size

CRF = "17"
SUFFIXES = (".mp4", ".gif", ".png", ".npy")
_BT709 = 1  # of matrix, primaries and transfer alike (ITU-T H.273, tables 2 to 4)
Frames = Iterator[NDArray[np.uint8]]


def check_output(path: str | os.PathLike[str], suffixes: tuple[str, ...] = SUFFIXES) -> Path:
    """Return ``path`` when a clip could be saved there; to be asked before hours of work, not after.

    Raises:
        BadInput: its suffix is not one of ``suffixes``, it is a folder, device or URL, or its folder cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise BadInput(f"output {path} does not end in one of {', '.join(suffixes)}; rename it")
    if "\0" in str(path):
        raise BadInput(f"output {str(path)!r} has a zero byte in its name; rename it")
    if URL.match(str(path)) and not Path(path.parts[0]).exists():
        raise BadInput(f"output {path} is an address, and clips are saved as files; name one on this machine")
    try:
        if path.is_dir():
            raise BadInput(f"output {path} is a folder; name a file in it")
        if path.exists() and not path.is_file():
            raise BadInput(f"output {path} is a device or pipe; name a regular file")
    except OSError as error:
        raise BadInput(f"output {path} cannot be used: {error.strerror}; choose another place") from error
    check_writable(path.absolute().parent, f"output {path}")
    return path


def write_frames(path: Path, frames: Frames, size: Size, fps: int, provenance: Mapping[str, Any]) -> None:
    """Write ``frames``, uint8 RGB [height, width, 3] each, as the form that the suffix of ``path`` names, whole or not at all.

    Raises:
        BadInput: they cannot be written in this form, or the disk is full; and whatever taking a frame raises.
    """
    with partial_file(path) as temporary:
        try:
            _WRITERS[path.suffix.lower()](frames, size, fps, temporary, json.dumps(provenance, sort_keys=True))
        except (FFmpegError, OverflowError) as error:  # the second is Pillow's, of sides that GIF has no room for
            if isinstance(error, OSError):  # of the disk, which partial_file explains
                raise
            why = getattr(error, "strerror", None) or error
            raise BadInput(
                f"{size.frames} frames of {size.height}x{size.width} cannot be written as {path.suffix} ({why}); "
                "save them as .npy, which takes any"
            ) from error


def contact_sheet(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [f, h, w, 3] → one uint8 [H, W, 3] about as wide as high, frames row by row, black where none is left."""
    count, height, width, _ = frames.shape
    columns = min(count, max(1, round(math.sqrt(count * height / width))))
    rows = -(-count // columns)
    padded = np.zeros((rows * columns, height, width, 3), np.uint8)
    padded[:count] = frames
    grid = padded.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, 3)


def _write_mp4(frames: Frames, size: Size, fps: int, path: Path, comment: str) -> None:
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    # Half as many values of colour need even sides; others keep all of them.
    pixels = "yuv420p" if size.height % 2 == size.width % 2 == 0 else "yuv444p"
    # "file:" keeps FFmpeg from reading what stands before a colon as a protocol.
    with av.open(f"file:{path}", "w", format="mp4", options=options) as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=fps, options={"crf": CRF})
        codec = stream.codec_context
        codec.height, codec.width = size.height, size.width
        codec.pix_fmt = pixels
        codec.thread_count = 1  # x264's rate control, so its bytes, depend on the number of threads
        # Said outright, because players guess the matrix from the height and would shift small clips' colours.
        codec.colorspace, codec.color_range = _BT709, int(ColorRange.MPEG)
        codec.color_primaries = codec.color_trc = _BT709
        for rgb in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            frame = frame.reformat(format=pixels, dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _write_gif(frames: Frames, size: Size, fps: int, path: Path, comment: str) -> None:
    # GIF counts hundredths of a second; rounding each frame's end, not its length, keeps the whole clip's length.
    ends = np.rint(np.arange(size.frames + 1) * 100 / fps)
    images = (Image.fromarray(frame) for frame in frames)
    first = next(images)
    first.save(path, "GIF", save_all=True, append_images=images, duration=[int(d) * 10 for d in np.diff(ends)], loop=0,
               comment=comment.encode())  # fmt: skip


def _write_png(frames: Frames, size: Size, fps: int, path: Path, comment: str) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", comment)
    Image.fromarray(contact_sheet(np.stack(list(frames)))).save(path, "PNG", pnginfo=text)


def _write_npy(frames: Frames, size: Size, fps: int, path: Path, comment: str) -> None:
    shape = (size.frames, size.height, size.width, 3)
    with path.open("wb") as file:  # not mapped: a disk that fills up would end the process
        write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for frame in frames:
            file.write(np.ascontiguousarray(frame).data)


_WRITERS: dict[str, Callable[[Frames, Size, int, Path, str], None]] = {
    ".mp4": _write_mp4,
    ".gif": _write_gif,
    ".png": _write_png,
    ".npy": _write_npy,
}
