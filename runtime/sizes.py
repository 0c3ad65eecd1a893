"""A clip's size in pixels, and how it is written: ``49x480x720``, frames first, then height."""

from __future__ import annotations

import re
from dataclasses import dataclass

from reelquant.runtime.errors import BadInput

NOTATION = "FRAMESxHEIGHTxWIDTH"


@dataclass(frozen=True)
class Size:
    """Frames, height and width; which of them a model can make is its family's to say."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        """As :meth:`parse` reads it."""
        return f"{self.frames}x{self.height}x{self.width}"

    @classmethod
    def parse(cls, text: str) -> Size:
        """``"49x480x720"`` → 49 frames of 480×720, unchecked.

        Raises:
            BadInput: the text is not FRAMESxHEIGHTxWIDTH.
        """
        found = re.fullmatch(r"(\d{1,5})x(\d{1,5})x(\d{1,5})", text.strip().lower(), re.ASCII)
        if not found:
            raise BadInput(
                f"size {text[:40]!r} is not {NOTATION}; write it like 49x480x720: 49 frames, 480 high, 720 wide"
            )
        return cls(int(found[1]), int(found[2]), int(found[3]))
