"""A clip that is still being decoded: its frames come chunk by chunk, and are written while the next are decoded."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Full, Queue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.media.flaws import FlawWatch
from reelquant.runtime.media.video import Clip
from reelquant.runtime.media.writers import check_output, write_frames
from reelquant.runtime.sizes import Size

Frames = NDArray[np.uint8]
_AHEAD = 2  # chunks that are decoded and not yet written
_LOOK = 0.2  # seconds between looks whether the writer has failed


@dataclass(frozen=True)
class SavedClip:
    """A clip in a file; the fields are those of :class:`reelquant.runtime.media.video.Clip`, but for the frames. "write" of ``seconds``
    is what was left to write when all was decoded.
    """

    path: Path
    size: Size
    fps: int
    provenance: dict[str, Any]
    seconds: dict[str, float]
    sha256: str
    flaws: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ClipStream:
    """``chunks`` are uint8 RGB [frames, height, width, 3], and come once; ``seconds`` says what each stage took so far."""

    chunks: Iterator[Frames]
    size: Size
    fps: int
    provenance: dict[str, Any]
    seconds: Callable[[], dict[str, float]]

    def clip(self) -> Clip:
        """All of it, in memory."""
        frames = np.empty((self.size.frames, self.size.height, self.size.width, 3), np.uint8)
        done = 0
        for chunk in self.chunks:
            frames[done : done + len(chunk)] = chunk
            done += len(chunk)
        return Clip(frames, self.fps, self.provenance, self.seconds())

    def save(self, path: str | os.PathLike[str], note: Mapping[str, Any] | None = None) -> SavedClip:
        """Write it as :meth:`reelquant.runtime.media.video.Clip.save` does, in another thread while it is decoded: memory holds a few
        chunks, however long the clip. ``note`` is added to the provenance.

        Raises:
            BadInput: the suffix is not one of a clip's, ``path`` cannot be written, or the disk is full; and whatever decoding
                raises: then there is no file.
        """
        target, provenance = check_output(path), {**self.provenance, **(note or {})}
        digest, watch = hashlib.sha256(), FlawWatch()
        waiting: Queue[Frames | None] = Queue(_AHEAD)
        with ThreadPoolExecutor(1, "reelquant-write") as pool:
            writer = pool.submit(write_frames, target, _frames(waiting, self.size), self.size, self.fps, provenance)
            try:
                for chunk in self.chunks:
                    digest.update(np.ascontiguousarray(chunk).data)
                    watch.see(chunk)
                    _put(waiting, chunk, writer)
            finally:
                _put(waiting, None, writer)
            decoded = time.monotonic()
            writer.result()
        seconds = {**self.seconds(), "write": time.monotonic() - decoded}
        return SavedClip(target, self.size, self.fps, provenance, seconds, digest.hexdigest(), watch.flaws())


class _Ended(Exception):
    """Decoding ended before the clip did."""


def _frames(waiting: Queue[Frames | None], size: Size) -> Iterator[Frames]:
    """The frames of the chunks that come, to the last of a clip of ``size``.

    Raises:
        _Ended: fewer come.
    """
    done = 0
    while (chunk := waiting.get()) is not None:
        done += len(chunk)
        yield from chunk
    if done < size.frames:
        raise _Ended


def _put(waiting: Queue[Frames | None], chunk: Frames | None, writer: Future[None]) -> None:
    """Hand ``chunk`` to the writer, or raise what has ended it."""
    while True:
        try:
            return waiting.put(chunk, timeout=_LOOK)
        except Full:
            if writer.done():
                writer.result()
                return None
