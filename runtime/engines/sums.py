"""Weighted sums of arrays that lie on a device: what lies between two runs of a transformer is nothing else.

Guidance, both schedulers and the forecasts of skipped steps are sums of latents, velocities and noise, with coefficients that are known beforehand.
A :class:`Sum` takes the place of an array in their code, notes what is to be added up, and is computed in one go where the arrays are: latents
do not come to the host between steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.engines.session import Value

Floats = NDArray[np.float32]


class Adder(ABC):
    """What computes sums where an engine computes; of arrays of one ``shape``, in float32."""

    shape: tuple[int, ...]

    @abstractmethod
    def put(self, array: Floats) -> Value:
        """A float32 array brought there."""

    @abstractmethod
    def add(self, terms: Sequence[tuple[float, Value]]) -> tuple[Value, float]:
        """The sum of arrays times their coefficients, and the sum of the squares of all of the result's values."""

    @abstractmethod
    def copied(self, value: Value) -> Value:
        """An array of as many values in memory of its own."""

    @abstractmethod
    def fed(self, value: Value) -> Value:
        """An array as the transformer takes latents, with a batch of one; good until the next."""

    @abstractmethod
    def host(self, value: Value) -> Floats:
        """The array on the host."""

    def rest(self) -> None:  # noqa: B027 - few hold anything
        """Give back what no sum refers to any more; it is not kept for the next one."""


class Sum:
    """Arrays times coefficients; stands for a float32 array of ``shape`` in sums and in products with a number.

    What outlives a step should be a sum of one array: :meth:`computed` makes it one.
    """

    __array_ufunc__ = None  # NumPy's scalars leave products with a sum to it

    def __init__(self, adder: Adder, shape: tuple[int, ...], terms: Sequence[tuple[float, Value]]) -> None:
        self.adder, self.shape, self._terms = adder, shape, tuple(terms)
        self._squares: float | None = None  # once it was added up

    @classmethod
    def of(cls, adder: Adder, array: Floats) -> Self:
        """An array of the host's."""
        return cls(adder, array.shape, [(1.0, adder.put(array))])

    def __add__(self, other: Sum) -> Sum:
        if not isinstance(other, Sum):
            return NotImplemented
        if other.shape != self.shape:
            raise ValueError(f"{self.shape} and {other.shape} differ in shape")
        coefficients = {id(value): 0.0 for _, value in (*self._terms, *other._terms)}
        values = {id(value): value for _, value in (*self._terms, *other._terms)}
        for coefficient, value in (*self._terms, *other._terms):
            coefficients[id(value)] += coefficient
        return Sum(self.adder, self.shape, [(coefficients[key], values[key]) for key in coefficients])

    def __mul__(self, factor: Any) -> Sum:
        if not np.isscalar(factor):
            return NotImplemented
        number = float(cast(float, factor))
        return Sum(self.adder, self.shape, [(number * coefficient, value) for coefficient, value in self._terms])

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> Sum:
        return self * (1 / float(divisor))

    def __neg__(self) -> Sum:
        return self * -1.0

    def __sub__(self, other: Sum) -> Sum:
        return self + (-other)

    def computed(self) -> Sum:
        """The same as one array."""
        if len(self._terms) != 1 or self._terms[0][0] != 1.0:
            self._add_up()
        return self

    @property
    def l2(self) -> float:
        """‖·‖ of all values; not finite where a value is not."""
        squares = self._add_up() if self._squares is None else self._squares
        return float(np.sqrt(squares)) if squares >= 0 else float("nan")

    @property
    def array(self) -> Value:
        """The one array that it is."""
        return self.computed()._terms[0][1]

    def _add_up(self) -> float:
        """Become one array; the sum of the squares of its values."""
        value, self._squares = self.adder.add(self._terms)
        self._terms = ((1.0, value),)
        return self._squares

    def host(self) -> Floats:
        """The array, on the host."""
        return self.adder.host(self.array).reshape(self.shape)


Array = Any  # a NumPy array, or a Sum in its place


def as_float32(x: Array) -> Array:
    """A sum as it is; anything else as a float32 array."""
    return x if isinstance(x, Sum) else np.asarray(x, np.float32)


def zeros_like(x: Array) -> Array:
    """Nothing, of the shape of ``x``."""
    return Sum(x.adder, x.shape, ()) if isinstance(x, Sum) else np.zeros_like(x)


def computed(x: Array) -> Array:
    """``x`` for keeps: of a sum the one array that it is."""
    return x.computed() if isinstance(x, Sum) else x


def is_finite(x: Array) -> bool:
    """Whether all of its values are."""
    return bool(np.isfinite(x.l2) if isinstance(x, Sum) else np.isfinite(x).all())
