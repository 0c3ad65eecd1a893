"""A clip's size in pixels, and how a command line says it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from reelquant.runtime.errors import BadInput


@dataclass(frozen=True)
class Size:
    """Frames, height and width; which of them a model can make is its family's to say."""

    frames: int
    height: int
    width: int


def parse_size(text: str) -> tuple[int, int]:
    """``"480x720"`` → (480, 720), height first.

    Raises:
        BadInput: the text is not HEIGHTxWIDTH.
    """
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text.strip().lower(), re.ASCII)
    if not found:
        raise BadInput(f"size {text[:40]!r} is not HEIGHTxWIDTH; write it like 480x720, height first")
    return int(found[1]), int(found[2])


def parse_clip(text: str) -> Size:
    """``"49x480x720"`` → 49 frames of 480×720, unchecked.

    Raises:
        BadInput: the text is not FRAMESxHEIGHTxWIDTH.
    """
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})x(\d{1,5})", text.strip().lower(), re.ASCII)
    if not found:
        raise BadInput(f"clip {text[:40]!r} is not FRAMESxHEIGHTxWIDTH; write it like 49x480x720")
    return Size(int(found[1]), int(found[2]), int(found[3]))
