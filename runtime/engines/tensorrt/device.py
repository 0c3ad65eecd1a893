"""What all engines of a process share on one GPU: a stream, and one block of activation memory."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.engines.tensorrt.cuda import Cuda

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
    def activation_bytes(self) -> int: ...

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


class Loader(Protocol):
    """Makes engines of files."""

    def load(self, file: Path) -> LoadedEngine: ...


class Memory:
    """Bytes on the device, freed with the last reference to them."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        self.bytes = size
        self.address = cuda.allocate(size)
        weakref.finalize(self, cuda.free, self.address)


class DeviceArray:
    """An array on the device. A stream's caches are such: handed from run to run, they never come to the host."""

    def __init__(self, cuda: Cuda, shape: Shape, dtype: str) -> None:
        self.shape, self.dtype = shape, dtype
        self._memory = Memory(cuda, ITEM_BYTES[dtype] * int(np.prod(shape, dtype=np.int64)))

    @property
    def address(self) -> int:
        return self._memory.address

    def exchange(self, other: DeviceArray) -> None:
        """Change memory with an array of the same shape and dtype."""
        assert (self.shape, self.dtype) == (other.shape, other.dtype)
        self._memory, other._memory = other._memory, self._memory


class Device:
    """A GPU's stream and the one block that every engine computes in.

    Text encoder, transformer and VAE run one after the other, so the largest's activations serve all of them. ``seconds``
    is how long engines have computed, by the stream's own events.
    """

    def __init__(self, cuda: Cuda, loader: Loader) -> None:
        self.cuda, self.loader = cuda, loader
        self.stream = cuda.stream()
        self.seconds = 0.0
        self._block: Memory | None = None

    def activations(self, size: int) -> int:
        """The address of at least ``size`` bytes, shared by all; it moves when a larger one is asked for."""
        if self._block is None or self._block.bytes < size:
            self.cuda.synchronize(self.stream)  # nobody may still compute in the old one
            self._block = None  # given back before the larger one is taken
            self._block = Memory(self.cuda, size)
        return self._block.address
