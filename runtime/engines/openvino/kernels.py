"""Which kernels OpenVINO takes on this CPU, and which it must not take."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from reelquant.runtime.errors import imported

# The graph says its own numerics: without these, a CPU with bf16 units would silently compute fp32 graphs in bf16, and what
# is fed to linears with INT8 weights would silently be quantized too.
OPTIONS: dict[str, Any] = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    "PERFORMANCE_HINT": "LATENCY",
}
# Q/DQ is then computed as the graph says it, and the products in float: weights stay in 8 bit, exact everywhere.
IN_FLOAT = {"LP_TRANSFORMS_MODE": "NO"}
# Two products of an unsigned byte and a weight up to this fit into 16 bits: 2 · 255 · 64 < 2¹⁵.
_FITS = 64


def overflows(model: Any) -> bool:
    """Whether INT8 products of ``model`` could overflow 16-bit sums: its activations are quantized, and a weight is large."""
    operators = model.get_ops()
    if not any(operator.get_type_name() == "FakeQuantize" for operator in operators):
        return False
    constants = (operator for operator in operators if operator.get_type_name() == "Constant")
    weights = (constant.data for constant in constants if constant.get_element_type().get_type_name() == "i8")
    return any(weight.size and (weight.max() > _FITS or weight.min() < -_FITS) for weight in weights)


@cache
def saturates() -> bool:
    """Whether OpenVINO's INT8 kernels on this CPU add products in 16 bits, which overflow without a word.

    They do on x86 without VNNI (``vpmaddubsw``: oneDNN's guide on INT8, "saturation"). One small product is computed and
    looked at, so that it is true of whatever kernels this version takes.
    """
    module()
    from openvino import Model, opset13

    size, largest = 64, 127
    x = opset13.parameter([1, size], np.float32)
    ends = [opset13.constant(np.float32(end)) for end in (-largest - 1, largest)]
    quantized = opset13.fake_quantize(x, *ends, *ends, 256)
    weight = opset13.convert(opset13.constant(np.full((size, size), largest, np.int8)), "f32")
    scaled = opset13.multiply(weight, opset13.constant(np.ones((1, size), np.float32)))
    model = Model([opset13.matmul(quantized, scaled, False, False)], [x])
    compiled = core().compile_model(model, "CPU", OPTIONS)
    found = compiled([np.full((1, size), largest, np.float32)])[0]
    return bool(np.any(found != size * largest**2))


@cache
def multiplies_bf16() -> bool:
    """Whether this CPU has units for bf16 (AVX512-BF16, AMX) and OpenVINO takes them.

    It says BF16 of every CPU with AVX-512. Where that has no units for it, or oneDNN was told to leave them (DNNL_MAX_CPU_ISA), it
    emulates bf16, in many times float32's time, or finds no kernel for some operators: so a small model is compiled, and its
    kernel looked at.
    """
    if "BF16" not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return False
    from openvino import Model, opset13

    x = opset13.parameter([1, 64, 64], np.float32)
    model = Model([opset13.softmax(opset13.matmul(x, x, False, False), 2)], [x])
    try:
        compiled = core().compile_model(model, "CPU", {**OPTIONS, "INFERENCE_PRECISION_HINT": "bf16"})
    except RuntimeError:
        return False
    facts = [operator.get_rt_info() for operator in compiled.get_runtime_model().get_ops()]
    products = [str(each["primitiveType"].astype(str)) for each in facts if each["layerType"].astype(str) == "MatMul"]
    return bool(products) and all(name.startswith("brgemm") and name.endswith("bf16") for name in products)


@cache
def core() -> Any:
    """The one Core of this process, which is never given up.

    A Core's CPU plugin gives the thread a stack for signal handlers, and takes it away with it. Of two Cores that go in
    the order they came, the second puts the first one's back, which is gone: the next Ctrl-C is a segmentation fault
    (seen with 2026.4).
    """
    return module().Core()


def module() -> Any:
    """The package.

    Raises:
        MissingExtra: it is not installed.
    """
    return imported("openvino", "openvino")
