"""A two-block transformer in CogVideoX's shape and names, twice: as an ONNX graph, and as numpy that shares no code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from reelquant.quant.calibration.ranges import Provenance, Ranges, Samples

Array = NDArray[Any]
DIM, INNER, LATENT, OUT, BLOCKS = 32, 64, 16, 8, 2
# Linear → (K, N); those of _GEMMS are Gemm nodes with the weight stored [N, K], the others MatMul and Add.
SHAPES = {"time_embedding.linear_1": (DIM, DIM), "patch_embed.proj": (LATENT, DIM)}
for _block in (f"transformer_blocks.{i}." for i in range(BLOCKS)):
    SHAPES |= {f"{_block}norm1.linear": (DIM, 2 * DIM), f"{_block}norm2.linear": (DIM, 2 * DIM)}
    SHAPES |= {f"{_block}attn1.{name}": (DIM, DIM) for name in ("to_q", "to_k", "to_v", "to_out.0")}
    SHAPES |= {f"{_block}ff.net.0.proj": (DIM, INNER), f"{_block}ff.net.2": (INNER, DIM)}
SHAPES |= {"norm_out.linear": (DIM, 2 * DIM), "proj_out": (DIM, OUT)}
_GEMMS = ("time_embedding", "norm")

Multiply = Callable[[str, Array, Array], Array]
# An operand of an attention and its name: "transformer_blocks.0.attn1", and q, k, v or p (the softmax's output).
Operand = Callable[[str, str, Array], Array]


def is_gemm(name: str) -> bool:
    return any(part.startswith(_GEMMS) for part in name.split("."))


def parameters(seed: int = 0) -> dict[str, Array]:
    """``<linear>.weight`` float32 [K, N], its columns of very different sizes, and ``<linear>.bias`` [N]."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, (rows, columns) in SHAPES.items():
        columns_scale = np.exp(rng.normal(0, 0.7, columns)) / np.sqrt(2 * rows)
        made[f"{name}.weight"] = (rng.normal(0, 1, (rows, columns)) * columns_scale).astype(np.float32)
        made[f"{name}.bias"] = rng.normal(0, 0.1, columns).astype(np.float32)
    return made


def feeds(seed: int = 1, batch: int = 3, tokens: int = 10) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "latents": rng.normal(0, 1, (batch, tokens, LATENT)).astype(np.float32),
        "time": rng.normal(0, 1, (batch, DIM)).astype(np.float32),
    }


def forward(
    weights: dict[str, Array], fed: dict[str, Array], multiply: Multiply, operand: Operand = lambda _, __, x: x
) -> Array:
    """The transformer in float64; ``multiply(linear, x [..., K], weight [K, N])`` computes every linear, and
    ``operand`` is what an attention makes of each of its operands.
    """

    def linear(name: str, x: Array) -> Array:
        return multiply(name, x, weights[f"{name}.weight"].astype(np.float64)) + weights[f"{name}.bias"]

    def modulated(name: str, x: Array) -> Array:
        normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        shift, scale = np.split(linear(name, time)[:, None], 2, axis=-1)
        return cast(Array, normal * (1 + scale) + shift)

    time = linear("time_embedding.linear_1", fed["time"].astype(np.float64))
    x = linear("patch_embed.proj", fed["latents"].astype(np.float64))
    for i in range(BLOCKS):
        block = f"transformer_blocks.{i}."
        normal = modulated(f"{block}norm1.linear", x)
        q, k, v = (linear(f"{block}attn1.to_{name}", normal) for name in "qkv")
        q, k, v = (operand(f"{block}attn1", name, each) for name, each in zip("qkv", (q, k, v), strict=True))
        scores = q @ k.transpose(0, 2, 1) * DIM**-0.5
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = operand(f"{block}attn1", "p", scores / scores.sum(-1, keepdims=True)) @ v
        x = x + linear(f"{block}attn1.to_out.0", mixed)
        inner = linear(f"{block}ff.net.0.proj", modulated(f"{block}norm2.linear", x))
        inner = inner / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
        x = x + linear(f"{block}ff.net.2", inner)
    return linear("proj_out", modulated("norm_out.linear", x))


def model(weights: dict[str, Array], opset: int = 23) -> ir.Model:
    """The same transformer as a graph: latents [batch, tokens, LATENT], time [batch, DIM] → out [batch, tokens, OUT]."""
    graph = _Graph(opset)
    latents, start = graph.input("latents", ["b", "t", LATENT]), graph.input("time", ["b", DIM])

    def linear(name: str, x: ir.Value) -> ir.Value:
        weight, bias = weights[f"{name}.weight"], graph.store(f"{name}.bias", weights[f"{name}.bias"])
        if is_gemm(name):
            return graph.op("Gemm", x, graph.store(f"{name}.weight", weight.T.copy()), bias, name=name, transB=1)
        return graph.op("Add", graph.op("MatMul", x, graph.store(f"{name}.weight", weight), name=name), bias)

    def modulated(name: str, x: ir.Value) -> ir.Value:
        normal = graph.op("LayerNormalization", x, one, epsilon=1e-5)
        rows = graph.op("Unsqueeze", linear(name, time), graph.store("middle", np.array([1])))
        shift = graph.op("Split", rows, outputs=2, axis=-1, num_outputs=2)
        scale = graph.last.outputs[1]
        return graph.op("Add", graph.op("Mul", normal, graph.op("Add", scale, one)), shift)

    one = graph.store("one", np.ones(DIM, np.float32))
    time = linear("time_embedding.linear_1", start)
    x = linear("patch_embed.proj", latents)
    for i in range(BLOCKS):
        block = f"transformer_blocks.{i}."
        normal = modulated(f"{block}norm1.linear", x)
        q, k, v = (linear(f"{block}attn1.to_{name}", normal) for name in "qkv")
        scores = graph.op("MatMul", q, graph.op("Transpose", k, perm=[0, 2, 1]))
        scaled = graph.op("Mul", scores, graph.store("scale", np.array(DIM**-0.5, np.float32)))
        mixed = graph.op("MatMul", graph.op("Softmax", scaled, axis=-1, name=f"{block}attn1/Softmax"), v)
        x = graph.op("Add", x, linear(f"{block}attn1.to_out.0", mixed))
        inner = linear(f"{block}ff.net.0.proj", modulated(f"{block}norm2.linear", x))
        x = graph.op("Add", x, linear(f"{block}ff.net.2", graph.op("Gelu", inner, approximate="tanh")))
    return graph.finish(linear("proj_out", modulated("norm_out.linear", x)), ["b", "t", OUT])


def ranges_of(low: dict[str, Array], high: dict[str, Array]) -> Ranges:
    """Ranges with made-up samples and provenance around given values [samples]."""
    count = len(next(iter(low.values())))
    samples = Samples(np.arange(count), np.arange(count) % 2 == 0, np.zeros(count, np.int64))
    provenance = Provenance("text-to-video", 7, 1, "ab" * 32, count, 9, 32, 48, "onnxruntime", "1.31.1", "cd" * 32)
    return Ranges(provenance, samples, low, high)


class _Graph:
    def __init__(self, opset: int) -> None:
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name="tiny")

    @property
    def last(self) -> ir.Node:
        return self.graph[-1]

    def input(self, name: str, shape: list[int | str]) -> ir.Value:
        self.graph.inputs.append(ir.val(name, ir.DataType.FLOAT, shape))
        return self.graph.inputs[-1]

    def store(self, name: str, array: Array) -> ir.Value:
        if name not in self.graph.initializers:
            self.graph.register_initializer(ir.val(name, const_value=ir.tensor(array, name=name)))
        return self.graph.initializers[name]

    def op(self, op: str, *inputs: ir.Value, name: str | None = None, outputs: int = 1, **attributes: Any) -> ir.Value:
        number = len(self.graph)
        values = [ir.val(f"{op.lower()}_{number}_{i}", ir.DataType.FLOAT) for i in range(outputs)]
        node = ir.node(op, list(inputs), attributes, outputs=values, name=name or f"node_{op}_{number}")
        self.graph.append(node)
        return node.outputs[0]

    def finish(self, output: ir.Value, shape: list[int | str]) -> ir.Model:
        output.name, output.shape = "out", ir.Shape(shape)
        self.graph.outputs.append(output)
        return ir.Model(self.graph, ir_version=10)
