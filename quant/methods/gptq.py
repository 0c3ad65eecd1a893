"""GPTQ: round a weight so that the errors of its rows cancel in the product (arXiv:2210.17323, algorithm 1).

The rows of a weight [K, N] are rounded in turn, and what each loses is made good by the rows that are still to come, as
far as their activations go together. That is what the Hessian of the squared error tells: twice the second moments of what
is read; the factor makes no difference to what is rounded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelquant.quant.formats import Format
from reelquant.quant.methods.primitives import Floats, dequantize, quantize

_DAMP = 0.01  # of the diagonal's mean, added to it: what calibration never saw is not known to be zero
_BATCH = 128  # rows whose errors are handed to all later rows at once


def gptq(weight: Floats, scales: Floats, hessian: NDArray[np.float64], format: Format) -> NDArray[Any]:
    """Weight [K, N], scales [N], [] or in blocks [K / size, N], and ``hessian`` E[x_i · x_j] [blocks, K/blocks, K/blocks] → ``format.dtype`` [K, N].

    Rows of different blocks do not make good each other's errors.
    """
    side = hessian.shape[-1]
    rows = scales[np.arange(len(weight)) * len(scales) // len(weight)] if scales.ndim == 2 else None
    rounded = []
    for number, square in enumerate(hessian):
        part = slice(number * side, (number + 1) * side)
        rounded.append(_block(weight[part], scales if rows is None else rows[part], square, format))
    return np.concatenate(rounded)


def _block(weight: Floats, scales: Floats, hessian: NDArray[np.float64], format: Format) -> NDArray[Any]:
    # The largest first: their errors matter most, and all other rows can still make them good.
    order = np.argsort(-np.diag(hessian), kind="stable")
    damped = hessian[np.ix_(order, order)]
    damped[np.diag_indices_from(damped)] += max(_DAMP * float(np.diag(damped).mean()), 1e-12)
    # U with inverse = UᵀU: row i says how the rows after it make good an error of row i.
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
    left = weight[order].copy()
    found = np.empty(weight.shape, format.dtype)
    for start in range(0, len(left), _BATCH):
        end = min(start + _BATCH, len(left))
        errors = np.empty((end - start, weight.shape[1]), np.float32)
        for row in range(start, end):
            scale = scales if scales.ndim < 2 else scales[order[row]]
            found[row] = quantize(left[row], scale, format)
            errors[row - start] = (left[row] - dequantize(found[row], scale)) / upper[row, row]
            left[row + 1 : end] -= np.outer(upper[row, row + 1 : end], errors[row - start])
        left[end:] -= upper[start:end, end:].T @ errors
    return found[np.argsort(order)]
