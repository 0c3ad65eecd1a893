"""What a builder's list of layers says, on a line of each kind as TensorRT-RTX 1.7.1 writes it, and of real engines."""

from __future__ import annotations

import pytest

from reelquant.runtime.engines.tensorrt.layers import Layer, Operand, read_layers, summary
from tests.conftest import BundleMaker


def operand(shape: str, dtype: str) -> str:
    strides = f"Strides: [{shape}], StrideOrder: [0], Datatype: {dtype}, Format: (Linear) Row major linear format"
    return f"{{ Name: some_tensor, Dimensions: [{shape}], {strides} }}"


def line(name: str, kind: str, inputs: list[str], constants: list[str], outputs: list[str], tactic: str) -> str:
    three = (f"[ {', '.join(each)}]" if each else "[]" for each in (inputs, constants, outputs))
    parts = ", ".join(f"{key}: {value}" for key, value in zip(("Inputs", "Constants", "Outputs"), three, strict=True))
    return f"Name: {name}, LayerType: {kind}, {parts}, TacticName: {tactic}, StreamId: 0, Metadata: [ONNX Layer: x/y]"


HEADS = [operand("4,204,64", "FP8"), operand("4,64,204", "FP8"), operand("4,204,64", "FP8")]
GEMM = line(
    "to_v+to_k+to_q_myl0_18", "gemm", [operand("1,204,256", "FP8")],
    [operand("1,256,768", "FP8"), operand("1", "Float")], [operand("1,204,768", "Half")], "__myelin_CASK_STUB",
)  # fmt: skip
LIST = "\n".join([
    "Layers:",
    line("entry^bb^signal^1_myl0_0", "signal", [], [], [], ""),
    GEMM,
    GEMM.replace("_myl0_18", "_myl0_19"),
    line("_gemm_mha_v2_myl0_28", "kgen", HEADS, [], [operand("4,204,64", "FP8")], "_gemm_mha_v2_0xf84d1f19"),
    line("proj", "correlation", [operand("5,16,12,12", "Float")], [operand("256,16,2,2", "Float")],
         [operand("5,256,6,6", "Float")], "stub"),
    line("__myl_CastMulCast_myl0_6", "kgen", [operand("2,3", "Int64")], [], [operand("2,3", "BFloat16")], "x_0x12"),
    "Name: of another version",
    "",
    "I/O Tensors:",
    " Name: latents, IOMode: Input, DataType: Float, Dimensions: [1,5,16,12,12], Location: Device",
])  # fmt: skip


def test_a_list_is_read() -> None:
    layers = read_layers(["Max Scratch Memory: 1 bytes", LIST])
    assert layers is not None
    assert [layer.kind for layer in layers] == ["gemm", "gemm", "attention", "convolution", "other"]
    gemm, _, attention, convolution, other = layers
    assert (gemm.format, attention.format, convolution.format, other.format) == ("fp8", "fp8", "fp32", "bf16")
    assert gemm.constants[0] == Operand((1, 256, 768), "fp8")
    assert gemm.flops == 2 * 204 * 256 * 768 and gemm.bytes == 204 * 256 + 256 * 768 + 4 + 2 * 204 * 768
    assert attention.flops == 2 * 2 * 4 * 204 * 204 * 64
    assert convolution.flops == 2 * 5 * 256 * 36 * 16 * 4
    assert other.flops == 0 and other.bytes == 6 * 8 + 6 * 2


def test_layers_that_are_alike_are_one_entry() -> None:
    found = summary(read_layers([LIST]) or ())
    assert [(each["kind"], each["count"]) for each in found][:2] == [("gemm", 2), ("attention", 1)]
    assert found[0] == {
        "kind": "gemm", "format": "fp8", "reads": "fp8", "holds": "fp8+fp32", "writes": "fp16",
        "tactic": "__myelin_CASK_STUB", "count": 2, "flops": 4 * 204 * 256 * 768,
        "bytes": 2.0 * (204 * 256 + 256 * 768 + 4 + 2 * 204 * 768),
    }  # fmt: skip
    assert found[1]["tactic"] == "_gemm_mha_v2"


@pytest.mark.parametrize("log", [[], ["no list"], ["Layers:\nName: of another version"]])
def test_what_is_not_understood_is_not_claimed(log: list[str]) -> None:
    assert read_layers(log) is None


def test_an_operand_of_an_unknown_format_keeps_its_name() -> None:
    layers = read_layers(["Layers:\n" + line("x", "kgen", [operand("8", "Odd")], [], [operand("8", "Odd")], "t")])
    assert layers == (Layer("x", "other", (Operand((8,), "odd"),), (), (Operand((8,), "odd"),), "t"),)


@pytest.mark.parametrize("precision", ["fp16", "fp8"])
def test_real_engines_multiply_in_what_their_graphs_say(rtx_bundle: BundleMaker, precision: str) -> None:
    bundle = rtx_bundle("t2v", precision)
    records = bundle.manifest.engines["tensorrt-rtx"]["engines"]
    (layers,) = [each["evidence"]["layers"] for each in records if each["component"] == "transformer"]
    blocks = 6
    fused = sum(each["count"] for each in layers if each["kind"] == "attention" and each["format"] == precision)
    gemms = [each for each in layers if each["kind"] == "gemm" and each["format"] == precision]
    assert fused == blocks
    # to_q, to_k and to_v are one product; to_out and both of the feed-forward are the others.
    assert sum(each["count"] for each in gemms) >= 4 * blocks
