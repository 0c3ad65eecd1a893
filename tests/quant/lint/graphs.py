"""Small graphs that TensorRT builds, and the same with one fault each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, shape_inference

FP32, FP16, BF16, FP8, FP4, INT8, INT32, UINT8 = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.FLOAT8E4M3FN,
    TensorProto.FLOAT4E2M1,
    TensorProto.INT8,
    TensorProto.INT32,
    TensorProto.UINT8,
)
_NUMPY: dict[int, Any] = {
    FP32: np.float32,
    FP16: np.float16,
    BF16: ml_dtypes.bfloat16,
    FP8: ml_dtypes.float8_e4m3fn,
    INT8: np.int8,
    INT32: np.int32,
    UINT8: np.uint8,
    TensorProto.INT64: np.int64,
}
HEADS, DIM = 2, 128
TOKENS = 12_000  # 576 MB of scores in 16 bit: whether they are whole shows in the builder's log


class Build:
    """x [1, tokens, 128] in ``base``, and what is made of it."""

    def __init__(self, base: int = FP16, opset: int = 21, tokens: int = 64) -> None:
        self.base, self.opset, self.tokens = base, opset, tokens
        self._nodes: list[onnx.NodeProto] = []
        self._stored: list[TensorProto] = []
        self._rng = np.random.default_rng(0)

    def store(self, values: ArrayLike, dtype: int | None = None) -> str:
        dtype = self.base if dtype is None else dtype
        array, name = np.asarray(values).astype(_NUMPY[dtype]), f"stored_{len(self._stored)}"
        self._stored.append(helper.make_tensor(name, dtype, array.shape, array.tobytes(), raw=True))
        return name

    def op(self, op: str, *inputs: str, domain: str = "", outputs: int = 1, **attributes: Any) -> str:
        name = f"{op}_{len(self._nodes)}"
        values = [f"{name}:{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(op, list(inputs), values, name=name, domain=domain, **attributes))
        return values[0]

    def weight(self, dtype: int | None = None, shape: tuple[int, ...] = (DIM, DIM)) -> str:
        return self.store(self._rng.normal(0, 0.05, shape), dtype)

    def qdq(
        self, x: str, format: int = FP8, scale: ArrayLike = 0.01, scale_type: int | None = None, zero: int = 0
    ) -> str:
        """x → QuantizeLinear → DequantizeLinear."""
        stored = self.store(scale, scale_type)
        zero_point = self.store(np.full(np.shape(scale), zero), format)
        return self.op("DequantizeLinear", self.op("QuantizeLinear", x, stored, zero_point), stored, zero_point)

    def weight_qdq(self, format: int = FP8, scale_type: int | None = None, per_channel: bool = False) -> str:
        """An 8-bit weight → DequantizeLinear."""
        stored = self.store(np.round(self._rng.normal(0, 8, (DIM, DIM))), format)
        scale = self.store(np.full(DIM, 0.01) if per_channel else 0.01, scale_type)
        return self.op("DequantizeLinear", stored, scale, axis=1)  # which a scalar scale does not look at

    def linear(self, x: str, format: int | None = None, per_channel: bool = False) -> str:
        if format is None:
            return self.op("MatMul", x, self.weight())
        return self.op("MatMul", self.qdq(x, format), self.weight_qdq(format, per_channel=per_channel))

    def nvfp4(self, x: str, block: int = 16) -> str:
        """x times a weight, both in 4 bit: blocks along the inner side, their scales in FP8."""
        packed = self._rng.integers(0, 256, DIM * DIM // 2, np.uint8).tobytes()
        whole = self.store(0.01)
        weight = f"stored_{len(self._stored)}"
        self._stored.append(helper.make_tensor(weight, FP4, (DIM, DIM), packed, raw=True))
        scales = self.op("DequantizeLinear", self.store(np.full((DIM // block, DIM), 0.5), FP8), whole)
        weight = self.op("DequantizeLinear", weight, scales, axis=0, block_size=block)
        to: dict[str, Any] = {"axis": -1, "block_size": block, "scale_type": FP8}
        values = self.op("TRT_FP4DynamicQuantize", x, self.store(0.01, FP32), domain="trt", outputs=2, **to)
        scales = self.op("DequantizeLinear", values.replace(":0", ":1"), whole)
        return self.op("MatMul", self.op("DequantizeLinear", values, scales, axis=-1, block_size=block), weight)

    def heads(self, x: str) -> str:
        shape = self.store([1, self.tokens, HEADS, DIM // HEADS], TensorProto.INT64)
        return self.op("Transpose", self.op("Reshape", x, shape), perm=[0, 2, 1, 3])

    def attention(
        self, x: str, quantized: str = "", format: int = FP8, axis: int = -1, after: Callable[[str], str] = lambda p: p
    ) -> str:
        """Attention with Q/DQ on those of "qkvs" that ``quantized`` names: s is the softmax's output."""
        q, k, v = (self.heads(self.linear(x)) for _ in range(3))
        q = self.op("Mul", q, self.store(0.125))
        k = self.op("Transpose", k, perm=[0, 1, 3, 2])
        q, k, v = (
            self.qdq(value, format) if name in quantized else value
            for name, value in zip("qkv", (q, k, v), strict=True)
        )
        p = after(self.op("Softmax", self.op("MatMul", q, k), axis=axis))
        p = self.qdq(p, format, 1 / 448 if format == FP8 else 1 / 127) if "s" in quantized else p
        mixed = self.op("Transpose", self.op("MatMul", p, v), perm=[0, 2, 1, 3])
        return self.op("Reshape", mixed, self.store([1, self.tokens, DIM], TensorProto.INT64))

    def model(self, y: str, result: int) -> onnx.ModelProto:
        self._nodes.append(helper.make_node("Identity", [y], ["y"], name="last"))
        x = helper.make_tensor_value_info("x", self.base, [1, self.tokens, DIM])
        out = helper.make_tensor_value_info("y", result, None)
        graph = helper.make_graph(self._nodes, "graph", [x], [out], self._stored)
        domains = {node.domain for node in self._nodes} - {""}
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(domain, 1) for domain in sorted(domains))]
        made = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        return shape_inference.infer_shapes(made, strict_mode=False)

    def shaped(self, x: str, *shape: int) -> str:
        return self.op("Reshape", x, self.store(shape, TensorProto.INT64))

    def number_in(self, x: str) -> str:
        """An axis or a length that only the data says, INT64 [1]."""
        largest = self.op("Cast", self.op("ReduceMax", x, keepdims=0), to=TensorProto.INT64)
        return self.op("Unsqueeze", largest, self.store([0], TensorProto.INT64))


@dataclass(frozen=True)
class Case:
    """``rule`` is the lint's for a faulty graph; ``unfused`` says that it builds, with its scores whole."""

    make: Callable[[Build], str]
    rule: str = ""
    unfused: bool = False
    base: int = FP16
    opset: int = 21
    tokens: int = 64
    targets: tuple[str, ...] = ("sm89",)
    result: int | None = None

    def proto(self) -> onnx.ModelProto:
        build = Build(self.base, self.opset, self.tokens)
        return build.model(self.make(build), self.base if self.result is None else self.result)

    def model(self) -> ir.Model:
        return ir.from_proto(self.proto())


def _refused(rule: str, make: Callable[[Build], str], **more: Any) -> Case:
    return Case(make, rule, **more)


def _unfused(rule: str, make: Callable[[Build], str], **more: Any) -> Case:
    return Case(make, rule, unfused=True, tokens=TOKENS, **more)


def _read_twice(g: Build) -> str:
    """An attention whose softmax is also summed."""
    seen: list[str] = []

    def keep(p: str) -> str:
        seen.append(p)
        return p

    y = g.attention("x", after=keep)
    return g.op("Add", y, g.op("ReduceMax", seen[0], g.store([0, 1, 2, 3], TensorProto.INT64), keepdims=0))


GOOD = {
    "fp16 linear": Case(lambda g: g.linear("x")),
    "bf16 linear": Case(lambda g: g.linear("x"), base=BF16),
    "fp32 linear": Case(lambda g: g.linear("x"), base=FP32),
    "fp8 linear": Case(lambda g: g.linear("x", FP8)),
    "fp8 linear, per channel": Case(lambda g: g.linear("x", FP8, per_channel=True)),
    "fp8 linear on Blackwell": Case(lambda g: g.linear("x", FP8), targets=("sm120",)),
    "fp8 linear for two GPUs": Case(lambda g: g.linear("x", FP8), targets=("sm89", "sm120")),
    "int8 linear": Case(lambda g: g.linear("x", INT8, per_channel=True)),
    "int8 linear on Ampere": Case(lambda g: g.linear("x", INT8), targets=("sm86",)),
    "int8 linear on Turing": Case(lambda g: g.linear("x", INT8), targets=("sm75",)),
    "fp8 weight alone": Case(lambda g: g.op("MatMul", "x", g.weight_qdq(FP8, per_channel=True))),
    "int8 weight alone": Case(lambda g: g.op("MatMul", "x", g.weight_qdq(INT8, per_channel=True))),
    "bf16 linear in fp8": Case(lambda g: g.linear("x", FP8), base=BF16),
    "a power of another type": Case(lambda g: g.op("Pow", "x", g.store(2, FP32))),
    "a convolution over three axes": Case(
        lambda g: g.op("Conv", g.shaped("x", 1, 4, 8, 16, 16), g.weight(shape=(4, 4, 3, 3, 3)))
    ),
    "nearest resize of every dimension": Case(
        lambda g: g.op("Resize", g.shaped("x", 1, 2, 4, 16, 64), "", g.store([2] * 5, FP32), mode="nearest")
    ),
    "linear resize of the last three": Case(
        lambda g: g.op("Resize", g.shaped("x", 1, 2, 4, 16, 64), "", g.store([1, 1, 2, 2, 2], FP32), mode="linear")
    ),
    "a shape computed of shapes": Case(
        lambda g: g.op(
            "Reshape", "x", g.op("Concat", g.op("Shape", "x", end=1), g.store([-1], TensorProto.INT64), axis=0)
        )
    ),
    "eight dimensions": Case(lambda g: g.shaped("x", 1, 1, 1, 1, 2, 4, 8, 128)),
    "the operator Attention": Case(lambda g: g.op("Attention", *(g.heads(g.linear("x")) for _ in range(3))), opset=23),
    "UINT8 as the result": Case(lambda g: g.op("QuantizeLinear", "x", g.store(0.1), g.store(0, UINT8)), result=UINT8),
    "nvfp4 linear on Blackwell": Case(lambda g: g.nvfp4("x"), opset=23, targets=("sm120",)),
    "fp16 attention": Case(lambda g: g.attention("x"), tokens=TOKENS),
    "bf16 attention": Case(lambda g: g.attention("x"), tokens=TOKENS, base=BF16),
    "fp8 attention": Case(lambda g: g.attention("x", "qkvs"), tokens=TOKENS),
    "fp8 attention in bf16": Case(lambda g: g.attention("x", "qkvs"), tokens=TOKENS, base=BF16),
    "fp32 attention of few tokens": Case(lambda g: g.attention("x"), base=FP32),
}

FAULTS = {
    "an operator that the parser lacks": _refused(
        "operator",
        lambda g: g.op("DynamicQuantizeLinear", g.op("Cast", "x", to=FP32), outputs=3),
        result=UINT8,
    ),
    "integer products": _refused(
        "operator",
        lambda g: g.op("MatMulInteger", g.op("Cast", "x", to=INT8), g.store(np.ones((DIM, DIM)), INT8)),
        result=INT32,
    ),
    "an operator of ONNX Runtime's own": _refused(
        "operator", lambda g: g.op("FusedMatMul", "x", g.weight(), domain="com.microsoft")
    ),
    "a product of fp16 and fp32": _refused("mixed-types", lambda g: g.op("MatMul", "x", g.weight(FP32))),
    "a sum of fp16 and fp32": _refused("mixed-types", lambda g: g.op("Add", "x", g.weight(FP32, (DIM,)))),
    "an fp32 scale on fp16 data": _refused(
        "scale-type", lambda g: g.op("MatMul", g.qdq("x", scale_type=FP32), g.weight_qdq())
    ),
    "an fp32 scale of a weight": _refused(
        "mixed-types", lambda g: g.op("MatMul", g.qdq("x"), g.weight_qdq(scale_type=FP32))
    ),
    "a scale of zero": _refused("scale", lambda g: g.op("MatMul", g.qdq("x", scale=0.0), g.weight_qdq())),
    "a negative scale": _refused("scale", lambda g: g.op("MatMul", g.qdq("x", scale=-0.1), g.weight_qdq())),
    "a zero point that is not zero": _refused(
        "zero-point", lambda g: g.op("MatMul", g.qdq("x", INT8, zero=3), g.weight_qdq(INT8))
    ),
    "a bias in INT32": _refused(
        "stored-type",
        lambda g: g.op("Add", g.linear("x"), g.op("DequantizeLinear", g.store(np.arange(DIM), INT32), g.store(0.01))),
    ),
    "INT8 times FP8": _refused("product-formats", lambda g: g.op("MatMul", g.qdq("x", INT8), g.weight_qdq(FP8))),
    "FP8 on Ampere": _refused("gpu-format", lambda g: g.linear("x", FP8), targets=("sm86",)),
    "FP8 on the A100": _refused("gpu-format", lambda g: g.linear("x", FP8), targets=("sm80",)),
    "FP8 for two GPUs of which one has it": _refused(
        "gpu-format", lambda g: g.linear("x", FP8), targets=("sm86", "sm89")
    ),
    "FP4 on Ada": _refused("gpu-format", lambda g: g.nvfp4("x"), opset=23),
    "bf16 on Turing": _refused("gpu-format", lambda g: g.linear("x"), base=BF16, targets=("sm75",)),
    "an operator whose kernel is missing": _refused(
        "operator", lambda g: g.op("NonZero", "x"), result=TensorProto.INT64
    ),
    "a normalization with an fp32 scale": _refused(
        "mixed-types", lambda g: g.op("LayerNormalization", "x", g.store(np.ones(DIM), FP32))
    ),
    "a choice of fp16 or fp32": _refused(
        "mixed-types", lambda g: g.op("Where", g.op("Greater", "x", g.store(0)), "x", g.store(0, FP32))
    ),
    "an fp32 bias of a convolution": _refused(
        "mixed-types",
        lambda g: g.op("Conv", g.shaped("x", 1, 4, 16, 128), g.weight(shape=(4, 4, 3, 3)), g.store(np.ones(4), FP32)),
    ),
    "a weight in UINT8": _refused("stored-type", lambda g: g.op("MatMul", "x", g.weight_qdq(UINT8))),
    "UINT8 within the graph": _refused("cast", lambda g: g.op("Cast", g.op("Cast", "x", to=UINT8), to=FP16)),
    "INT16 within the graph": _refused(
        "cast", lambda g: g.op("Cast", g.op("Cast", "x", to=TensorProto.INT16), to=FP16)
    ),
    "nine dimensions": _refused("dimensions", lambda g: g.shaped("x", 1, 1, 1, 1, 1, 2, 4, 8, 128)),
    "axes that the data says": _refused("shape-from-data", lambda g: g.op("ReduceSum", "x", g.number_in("x"))),
    "a length that the data says": _refused("shape-from-data", lambda g: g.op("Expand", "x", g.number_in("x"))),
    "a slice along an axis that the data says": _refused(
        "shape-from-data",
        lambda g: g.op(
            "Slice", "x", g.store([0], TensorProto.INT64), g.store([8], TensorProto.INT64), g.number_in("x")
        ),
    ),
    "a convolution over four axes": _refused(
        "convolution", lambda g: g.op("Conv", g.shaped("x", 1, 4, 4, 4, 8, 16), g.weight(shape=(4, 4, 1, 1, 3, 3)))
    ),
    "linear resize of four dimensions": _refused(
        "resize", lambda g: g.op("Resize", g.shaped("x", 1, 4, 16, 128), "", g.store([2] * 4, FP32), mode="linear")
    ),
    "cubic resize of three dimensions": _refused(
        "resize",
        lambda g: g.op("Resize", g.shaped("x", 1, 4, 16, 128), "", g.store([1, 2, 2, 2], FP32), mode="cubic"),
    ),
    "the operator Attention in fp32": _unfused(
        "attention-operator",
        lambda g: g.op("Attention", *(g.heads(g.linear("x")) for _ in range(3))),
        base=FP32,
        opset=23,
    ),
    "the operator Attention with softcap": _refused(
        "attention-operator",
        lambda g: g.op("Attention", *(g.heads(g.linear("x")) for _ in range(3)), softcap=30.0),
        opset=23,
    ),
    "FP4 in blocks of 32": _refused("block-size", lambda g: g.nvfp4("x", 32), opset=23, targets=("sm120",)),
    "FP8 on Q and K alone": _unfused("attention-qdq", lambda g: g.attention("x", "qk")),
    "FP8 on Q, K and V alone": _unfused("attention-qdq", lambda g: g.attention("x", "qkv")),
    "FP8 on the softmax alone": _unfused("attention-qdq", lambda g: g.attention("x", "s")),
    "FP8 without K": _unfused("attention-qdq", lambda g: g.attention("x", "qvs")),
    "INT8 attention": _unfused("attention-qdq", lambda g: g.attention("x", "qkvs", INT8)),
    "fp32 attention": _unfused("attention-type", lambda g: g.attention("x"), base=FP32),
    "a softmax that is read twice": _unfused("attention-shape", _read_twice),
}
