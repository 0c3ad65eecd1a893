"""What is done to a weight before and while it is rounded, and what its bias makes good."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelquant.quant.calibration.channels import Channels
from reelquant.quant.formats import Format
from reelquant.quant.methods.balance import Balance
from reelquant.quant.methods.gptq import gptq
from reelquant.quant.methods.primitives import Floats, quantize


@dataclass(frozen=True, eq=False)
class Treatment:
    """Of all weights that read one activation: its ``channels``, how it was balanced, and the variance that quantizing it
    adds to each channel (``noise``). Without ``compensated`` weights are rounded to nearest, else by GPTQ.
    """

    channels: Channels
    balance: Balance
    noise: float
    compensated: bool

    def weight(self, matrix: Floats) -> Floats:
        """The weight [K, N] that the balanced activation is multiplied with."""
        return self.balance.weight(matrix)

    def rounded(self, matrix: Floats, scales: Floats, format: Format, axis: int) -> NDArray[Any]:
        """The balanced weight [K, N] in ``format``; scales [] or, along ``axis``, [N]."""
        if not self.compensated:
            return quantize(matrix, scales, format, axis)
        return gptq(matrix, scales, self._hessian(), format)

    def correction(self, matrix: Floats, lost: Floats) -> Floats:
        """What is added to the bias [N]: c·W of the weight as it was, and the mean of what rounding it lost, E[x']·lost."""
        return np.asarray(self.balance.shift @ matrix + self.balance.mean @ lost, np.float32)

    def _hessian(self) -> NDArray[np.float64]:
        """Of the squared error, but for its factor 2: covariances of the quantized, balanced activation, since the bias takes the
        mean's share of all errors.
        """
        covariance = self.channels.covariance()
        scale = self.balance.scale.astype(np.float64).reshape(len(covariance), -1)
        found = covariance / (scale[:, :, None] * scale[:, None, :])
        return np.asarray(found + self.noise * np.eye(found.shape[-1]))
