"""TensorRT's two kinds behind one API: for RTX GPUs, built without a GPU, and the standard one, built on its target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reelquant.runtime.errors import imported


@dataclass(frozen=True)
class Flavor:
    """``engine`` is its name here and its extra's, ``package`` what is imported.

    ``ahead_of_time`` says that it compiles for GPUs that are not there.
    """

    engine: str
    package: str
    ahead_of_time: bool

    def module(self) -> Any:
        """The imported package.

        Raises:
            MissingExtra: it is not installed.
        """
        return imported(self.package, self.engine)

    def version(self) -> str:
        return str(self.module().__version__)


RTX = Flavor("tensorrt-rtx", "tensorrt_rtx", ahead_of_time=True)
STANDARD = Flavor("tensorrt", "tensorrt", ahead_of_time=False)
