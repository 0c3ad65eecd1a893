"""What stands in for bf16 where CUDA has no kernels in it computes the same values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from reelquant.quant.lint.cuda_kernels import placed
from reelquant.quant.passes.widen_bf16 import widen_bf16
from reelquant.runtime.engines.registry import open_onnx

GRAPHS = {
    "Resize": 'half = Resize <mode = "nearest"> (x16, , , sizes)',
    "Pad": "half = Pad (x16, pads)",
    "QDQ": "q = QuantizeLinear (x16, scale, zero) half = DequantizeLinear (q, scale, zero)",
}
TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[1, 1, 3, 4] x) => (float[a, b, c, d] y)
<int64[4] sizes = {1, 1, 6, 8}, int64[8] pads = {0, 0, 1, 0, 0, 0, 0, 2}, int8 zero = {0}, float wide = {0.0078125}> {
 x16 = Cast <to = 16> (x)
 scale = Cast <to = 16> (wide)
 BODY
 y = Cast <to = 1> (half)
}"""


@pytest.mark.parametrize("name", GRAPHS)
def test_the_values_are_bf16s_own(name: str, tmp_path: Path) -> None:
    text = TEXT.replace("BODY", GRAPHS[name])
    model = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(ir.from_onnx_text(text))))
    assert placed(model).lacking or placed(model).on_cpu
    assert widen_bf16(model) == (2 if name == "QDQ" else 1) and widen_bf16(model) == 0
    assert placed(model).lacking == placed(model).on_cpu == ()
    assert [value.name for value in model.graph.outputs] == ["y"]
    ir.save(model, tmp_path / "graph.onnx")
    x = np.random.default_rng(0).standard_normal((1, 1, 3, 4), dtype=np.float32) / 2
    half = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    made: dict[str, NDArray[Any]] = {
        "Resize": half.repeat(2, 2).repeat(2, 3),
        "Pad": np.pad(half, ((0, 0), (0, 0), (1, 0), (0, 2))),
        "QDQ": np.clip(np.rint(half * 128), -128, 127) / 128,
    }
    wanted = made[name].astype(ml_dtypes.bfloat16).astype(np.float32)
    found = open_onnx("onnxruntime", tmp_path / "graph.onnx").run({"x": x})["y"]
    assert np.array_equal(found, wanted)


def test_a_result_keeps_its_name() -> None:
    """A stream's caches are outputs in bf16."""
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 21]>
g (bfloat16[1, 4] x) => (bfloat16[1, 6] "next_cache.x") <int64[4] pads = {0, 1, 0, 1}> { "next_cache.x" = Pad (x, pads) }""")
    assert widen_bf16(model) == 1
    (result,) = model.graph.outputs
    assert (result.name, result.dtype) == ("next_cache.x", ir.DataType.BFLOAT16)
    assert [node.op_type for node in model.graph] == ["Cast", "Pad", "Cast"]
    onnx.checker.check_model(ir.to_proto(model))


def test_a_graph_without_bf16_is_left_alone() -> None:
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 21]> g (float[4] x) => (float[4] y) { y = Neg(x) }')
    assert widen_bf16(model) == 0 and model.opset_imports[""] == 21
