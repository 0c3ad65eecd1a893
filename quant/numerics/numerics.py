"""What has to be known of numerics, in one place: how they are inserted, stored, limited, and where they compute."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from reelquant.quant.calibration.ranges import Ranges
from reelquant.quant.evaluation.limits import Limits
from reelquant.quant.formats import Format
from reelquant.quant.graph.linears import Linear
from reelquant.quant.methods.method import Method
from reelquant.quant.passes.qdq import QdqInserter
from reelquant.runtime.bundle.support import BASES, Support


@dataclass(frozen=True)
class High:
    """Stay in the graph's own precision."""


@dataclass
class Group:
    """Linears that read one activation, and are quantized in one way."""

    activation: str
    numerics: Numerics
    method: Method
    linears: list[Linear] = field(default_factory=list)


class Numerics(ABC):
    """What products of a transformer are computed in. Each kind is a file; :data:`reelquant.quant.numerics.NUMERICS` names them.

    ``bases`` are those that the rest of the graph may compute in, ``operators`` what these numerics add to a graph beside
    those of ONNX, and ``opset`` the least that they need. ``weight_only`` says that activations stay as they are.
    """

    format: Format
    bases: ClassVar[tuple[str, ...]] = tuple(BASES)
    operators: ClassVar[frozenset[str]] = frozenset()
    opset: ClassVar[int] = 21
    weight_only: ClassVar[bool] = False
    reads_range: ClassVar[bool] = True  # whether calibration says the activation's scale
    balances: ClassVar[bool] = False  # whether the method's balancing reaches it
    rounds: ClassVar[bool] = True  # whether the method's rounding does

    @property
    @abstractmethod
    def limits(self) -> Limits | None:
        """The gate's; None where no CPU computes a graph with these numerics, so that nothing can be judged."""

    @abstractmethod
    def support(self, base: str) -> Support:
        """Where a graph computes whose other parts are in ``base``."""

    @abstractmethod
    def stored_bytes(self, shape: tuple[int, int]) -> int:
        """Of a weight [K, N] with its scales."""

    @abstractmethod
    def insert(self, inserter: QdqInserter, group: Group, ranges: Ranges) -> None:
        """Let the group's linears multiply in these numerics.

        Raises:
            BundleError: a weight has an infinity or NaN.
        """

    def refuses(self, linear: Linear) -> str | None:
        """Why this linear has to stay high; None where it can be quantized."""
        return None

    def needs_channels(self, method: Method) -> bool:
        """Whether the ranges must have statistics of every channel."""
        return False
