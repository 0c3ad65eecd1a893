"""The list of CUDA's kernels, and which nodes of our graphs it has none for."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from reelquant.quant.graph.graph_files import load_graph
from reelquant.quant.lint.cuda_kernels import Kind, has_kernel, kinds, placed
from reelquant.runtime.engines.onnxruntime_cuda import starts
from tests.conftest import BundleMaker


def graph(text: str, opset: int = 21) -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : {opset}, "trt" : 1]>\n{text}')


def typed(text: str, opset: int = 21) -> ir.Model:
    """With the types of all values, as our graphs have them."""
    model = onnx.shape_inference.infer_shapes(ir.to_proto(graph(text, opset)))
    return ir.from_proto(model)


def test_kernels_are_found_by_version_and_type() -> None:
    def has(operator: str, since: int, name: str, provider: str = "CUDA") -> bool:
        return has_kernel(provider, Kind("", operator, since, (("T", name),)))

    assert has("Softmax", 13, "bfloat16") and not has("Softmax", 13, "bfloat16", "CPU")
    assert has("Conv", 22, "bfloat16") and not has("Conv", 11, "bfloat16")
    assert not has("Pad", 21, "bfloat16") and has("Pad", 21, "float16")
    # A kernel that has no last version is for its own alone.
    assert has("Softmax", 13, "float") and not has("Softmax", 14, "float")
    assert not has("TRT_MXFP8DynamicQuantize", 1, "float16")
    assert not has_kernel("CUDA", Kind("", "QuantizeLinear", 21, (("T1", "bfloat16"), ("T2", "int8"))))


@pytest.mark.parametrize("name", ["float", "float16", "bfloat16"])
def test_attention_as_one_node_has_a_kernel(name: str) -> None:
    model = typed(f"g ({name}[1, 2, 5, 8] q, {name}[1, 2, 5, 8] k, {name}[1, 2, 5, 8] v) => ({name}[1, 2, 5, 8] y)"
                  " { y = Attention(q, k, v) }", 23)  # fmt: skip
    assert placed(model).lacking == placed(model).on_cpu == ()
    assert has_kernel("CPU", next(kinds(model))) == (name != "bfloat16")


def test_what_onnx_defines_by_others_is_looked_at_by_those() -> None:
    model = typed("g (float16[1, 4, 8] x, float16[4] s) => (float16[1, 4, 8] y) "
                  "{ y = GroupNormalization <num_groups = 2> (x, s, s) }")  # fmt: skip
    found = {kind.operator for kind in kinds(model)}
    assert "GroupNormalization" not in found and {"Reshape", "Mul", "Add"} <= found
    assert placed(model).lacking == placed(model).on_cpu == ()


def test_nodes_without_a_kernel_are_said() -> None:
    resize = typed("g (bfloat16[1, 1, 2, 2] x) => (bfloat16[1, 1, 4, 4] y) <int64[4] sizes = {1, 1, 4, 4}> "
                   "{ y = Resize (x, , , sizes) }")  # fmt: skip
    assert placed(resize).lacking == ("1 Resize of bfloat16, int64",)
    on_cpu = typed("g (float[2, 2] x) => (float y) { y = Det(x) }")
    assert placed(on_cpu).on_cpu == ("1 Det of float",) and placed(on_cpu).lacking == ()
    shapes = typed("g (int64[4] x) => (int64[4] y) { y = Sign(x) }")
    assert placed(shapes).on_cpu == placed(shapes).lacking == ()


@pytest.mark.parametrize(("task", "precision"), [("t2v", "fp32"), ("t2v", "int8"), ("t2v", "fp8"), ("i2v", "fp32")])
def test_every_node_of_the_demo_has_one(demo_bundle: BundleMaker, task: str, precision: str) -> None:
    bundle = demo_bundle(task, precision)
    for component, name in bundle.manifest.graphs():
        found = placed(load_graph(bundle.graph(component, name)))
        assert found.on_cpu == found.lacking == (), f"{component}/{name}"


def test_the_file_that_is_tried_first_is_what_it_says() -> None:
    model = onnx.load_from_string(starts._TINY)
    onnx.checker.check_model(model)
    assert [(node.op_type, list(node.input), list(node.output)) for node in model.graph.node] == [("Neg", ["x"], ["y"])]
