"""How far an array is from another, without BLAS.

NumPy hands norms and inner products to OpenBLAS, whose threads go on waiting for more in a busy loop, for some milliseconds. Between two runs
of an engine they take the cores that the next run needs: on two cores a step of the demo then takes as long as on one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[Any]


def l2(x: _Array) -> float:
    """‖x‖ of all values, summed in float64; not finite where a value is not."""
    return float(np.sqrt(np.square(x, dtype=np.float64).sum()))


def relative_l2(found: _Array, wanted: _Array) -> float:
    """‖found − wanted‖ / ‖wanted‖, in float64; infinite when anything found is not finite or the shapes differ."""
    if found.shape != wanted.shape or not np.isfinite(found).all():
        return float("inf")
    return l2(np.subtract(found, wanted, dtype=np.float64)) / max(l2(wanted), 1e-30)
