"""The numerics that a recipe can name. Each kind is a file here, and says of itself all that the others ask."""

from reelquant.quant.formats import FP8_E4M3, INT4, INT8, INT8_REDUCED, Blocked, PerChannel, PerTensor
from reelquant.quant.numerics.mxfp8 import MxFp8
from reelquant.quant.numerics.numerics import Group, High, Numerics
from reelquant.quant.numerics.nvfp4 import NvFp4
from reelquant.quant.numerics.static import Quantized
from reelquant.quant.numerics.weight_only import WeightOnly

__all__ = ["HIGH", "NUMERICS", "Group", "High", "MxFp8", "Numerics", "NvFp4", "Quantized", "WeightOnly"]

HIGH = High()
# What a recipe can write after ``numerics =``.
NUMERICS: dict[str, Numerics | High] = {
    "high": HIGH,
    "int8": Quantized(INT8, weights=PerChannel(axis=1)),
    "int8_reduced": Quantized(INT8, weights=PerChannel(axis=1), weight_format=INT8_REDUCED),
    "fp8": Quantized(FP8_E4M3, weights=PerTensor()),
    "fp8_per_channel": Quantized(FP8_E4M3, weights=PerChannel(axis=1)),
    "mxfp8": MxFp8(),
    "nvfp4": NvFp4(),
    "int8_weight": WeightOnly(INT8, weights=PerChannel(axis=1)),
    "int4_weight": WeightOnly(INT4, weights=Blocked(64)),
    "fp8_weight": WeightOnly(FP8_E4M3, weights=PerChannel(axis=1)),
}
