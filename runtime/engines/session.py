"""A loaded graph, as every engine hands it out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # which is made of this
    from reelquant.runtime.engines.sums import Adder

Array = NDArray[Any]
Feeds = Mapping[str, Array]


class DeviceArray(Protocol):
    """An array in a device's memory; ``dtype`` is the engine's own name of it, since NumPy does not know them all."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str: ...


Value = Array | DeviceArray
Values = Mapping[str, Value]

# A graph's metadata under this key say what of it may be computed in bf16 where the CPU has units for that, and in float32
# elsewhere: both products of every attention, or all that is not quantized. Engines that do not know it compute the graph as it is.
BF16_KEY, BF16_ATTENTION, BF16_ALL = "reelquant.bf16", "attention", "all"


class Session(ABC):
    """One loaded graph.

    :meth:`run` takes and gives arrays on the host. What is fed again and again, or handed from run to run, may lie where
    the engine computes: :meth:`put` brings it there, :meth:`run_keeping` leaves it there. On an engine that computes on the
    host both are plain arrays.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    batch: int | None = None  # how many rows one run takes; None: as many as are fed

    @abstractmethod
    def run(self, feeds: Values) -> dict[str, Array]:
        """Compute every output; arrays are C-contiguous, on the host, and owned by the caller.

        Raises:
            EngineError: the engine gave up.
        """

    def run_keeping(
        self, feeds: Values, keep: Callable[[str], bool], into: Values = MappingProxyType({})
    ) -> tuple[dict[str, Array], dict[str, Value]]:
        """As :meth:`run`, but the outputs whose names ``keep`` is true of stay where the engine computes; they are the second value.

        Of those, what ``into`` names is written into its arrays where the engine can: C-contiguous ones of the output's
        shape and dtype. An array of ``into`` may be fed too, where the graph computes that output from what it has read of
        that input.

        Raises:
            EngineError: the engine gave up.
        """
        return _apart(self.run(feeds), keep)

    def put(self, feeds: Feeds) -> Values:
        """``feeds``, or those of them that the graph reads, brought to where the engine computes."""
        return feeds

    def adder(self, shape: tuple[int, ...]) -> Adder | None:
        """What adds up arrays of ``shape`` where this graph's results lie; None where they come to the host."""
        return None

    def rest(self) -> None:  # noqa: B027 - few engines hold anything between runs
        """Give back what only a run needs, where memory is short; the next run takes it again, and need not compile anything."""


class HostSession(Session):
    """A session on the host: what is left to say is :meth:`compute`."""

    @abstractmethod
    def compute(self, feeds: Feeds, into: Feeds) -> dict[str, Array]:
        """As :meth:`Session.run`; the outputs that ``into`` names are written into its arrays."""

    def run(self, feeds: Values) -> dict[str, Array]:
        return self.compute(_on_host(feeds), {})

    def run_keeping(
        self, feeds: Values, keep: Callable[[str], bool], into: Values = MappingProxyType({})
    ) -> tuple[dict[str, Array], dict[str, Value]]:
        return _apart(self.compute(_on_host(feeds), _on_host(into)), keep)


def _on_host(values: Values) -> Feeds:
    for name, value in values.items():
        assert isinstance(value, np.ndarray), f"{name} is on a device, and this engine computes on the host"
    return cast(Feeds, values)


def _apart(results: dict[str, Array], keep: Callable[[str], bool]) -> tuple[dict[str, Array], dict[str, Value]]:
    kept: dict[str, Value] = {name: results.pop(name) for name in list(results) if keep(name)}
    return results, kept
