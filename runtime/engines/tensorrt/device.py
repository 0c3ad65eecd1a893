"""What all engines of a process share on one GPU: a stream, and one block of activation memory."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.engines.tensorrt.cuda import Cuda
from reelquant.runtime.errors import EngineError

Array = NDArray[Any]
Shape = tuple[int, ...]
# TensorRT's names of dtypes; bf16 has no NumPy dtype and stays on the device.
ITEM_BYTES = {"FLOAT": 4, "HALF": 2, "BF16": 2, "INT64": 8, "INT32": 4, "INT8": 1, "UINT8": 1, "BOOL": 1}
NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "INT32": np.int32, "BOOL": np.bool_}


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine; ``dtype`` is TensorRT's name."""

    name: str
    dtype: str
    is_input: bool


class LoadedEngine(Protocol):
    """An engine in device memory with one execution context, whose activations are the caller's to provide."""

    @property
    def tensors(self) -> Mapping[str, Tensor]: ...

    @property
    def activation_bytes(self) -> int:
        """For the shapes that were set; before, the most of all that it was built for."""
        ...

    @property
    def capturable(self) -> bool:
        """Whether the caller may record its work as a CUDA graph."""
        ...

    def set_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Choose the inputs' shapes and return the outputs'."""
        ...

    def enqueue(self, addresses: Mapping[str, int], activations: int, stream: int) -> None:
        """Start the work on ``stream``: every tensor at its address, activations at theirs."""
        ...

    def close(self) -> None:
        """Give it up, once its work is done; the last reference to it does the same."""
        ...


class Loader(Protocol):
    """Makes engines of files."""

    def load(self, file: Path) -> LoadedEngine: ...


class Memory:
    """Bytes on the device, freed with the last reference to them."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        self.bytes = size
        self.address = cuda.allocate(size)
        weakref.finalize(self, _free, cuda, self.address)


class DeviceArray:
    """An array on the device. A stream's caches are such: handed from run to run, they never come to the host."""

    def __init__(self, cuda: Cuda, shape: Shape, dtype: str, memory: Memory | None = None) -> None:
        self.shape, self.dtype = shape, dtype
        self.memory = memory or Memory(cuda, ITEM_BYTES[dtype] * int(np.prod(shape, dtype=np.int64)))

    @property
    def address(self) -> int:
        return self.memory.address

    def exchange(self, other: DeviceArray) -> None:
        """Change memory with an array of the same shape and dtype."""
        assert (self.shape, self.dtype) == (other.shape, other.dtype)
        self.memory, other.memory = other.memory, self.memory


class Device:
    """A GPU's stream and the one block that every engine computes in.

    Text encoder, transformer and VAE run one after the other, so the largest's activations serve all of them. ``seconds``
    is how long engines have computed, by the stream's own events. Who runs an engine holds ``lock``: pipelines of several
    threads share all of this.
    """

    def __init__(self, cuda: Cuda, loader: Loader) -> None:
        self.cuda, self.loader, self.lock = cuda, loader, RLock()
        self.stream = cuda.stream()
        self.seconds = 0.0
        self._block: Memory | None = None
        self._users: dict[int, int] = {}  # what each of the loaded engines last computed in

    def activations(self, user: int, size: int) -> int:
        """The address of at least ``size`` bytes for ``user``, the same for all; it moves when a larger block is needed."""
        self._users[user] = size
        if self._block is None or self._block.bytes < size:
            self.cuda.synchronize(self.stream)  # nobody may still compute in the old one
            self._block = None  # given back before the larger one is taken
            self._block = Memory(self.cuda, size)
        return self._block.address

    def leaves(self, user: int) -> None:
        """``user`` is given up; a block that is larger than those who are left need is given back."""
        self._users.pop(user, None)
        if self._block is not None and self._block.bytes > max(self._users.values(), default=0):
            self._block = None


def _free(cuda: Cuda, address: int) -> None:
    with suppress(EngineError):  # after a failure that CUDA does not recover from, or at a process's end
        cuda.free(address)
