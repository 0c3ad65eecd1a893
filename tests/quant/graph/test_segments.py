"""A graph cut at its blocks computes what it did, and each part holds its own block's weights alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from reelquant.quant.graph.blockwise import blockwise
from reelquant.quant.graph.segments import segments
from reelquant.runtime.engines.registry import open_onnx
from reelquant.runtime.engines.session import Array

GRAPH = """<ir_version: 10, opset_import: ["" : 21]>
main (float[n, 4] x, float[n, 4] more) => (float[n, 4] y)
<float[4] w0 = {1, 2, 3, 4}, float[4] w1 = {2, 2, 2, 2}, float[4] w2 = {0.5, 1, 1, 1}, float[4] end = {3, 1, 1, 1}> {
 early = Abs(more)
 ["transformer_blocks.0.ff"] a = Mul(x, w0)
 late = Neg(x)
 ["transformer_blocks.1.ff"] b = Mul(a, w1)
 ["transformer_blocks.1.ff/Add"] c = Add(b, early)
 ["transformer_blocks.2.ff"] d = Mul(c, w2)
 e = Add(d, late)
 ["proj_out"] y = Mul(e, end)
}"""


@pytest.fixture
def model() -> ir.Model:
    """As traced graphs are, with every value's type."""
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(ir.from_onnx_text(GRAPH))))


def test_segments_run_in_order_are_the_whole(model: ir.Model, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values: dict[str, Array] = {name: rng.standard_normal((3, 4), dtype=np.float32) for name in ("x", "more")}
    ir.save(model, tmp_path / "whole.onnx")
    wanted = open_onnx("onnxruntime", tmp_path / "whole.onnx").run(values)["y"]
    parts = list(segments(model))
    assert len(parts) == 4
    for number, part in enumerate(parts):
        ir.save(part, tmp_path / f"{number}.onnx")
        values.update(open_onnx("onnxruntime", tmp_path / f"{number}.onnx").run(values))
    assert np.allclose(values["y"], wanted, rtol=1e-6)


def test_a_blockwise_plan_is_the_whole(model: ir.Model, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = [{name: rng.standard_normal((rows, 4), dtype=np.float32) for name in ("x", "more")} for rows in (3, 5)]
    ir.save(model, tmp_path / "whole.onnx")
    whole = open_onnx("onnxruntime", tmp_path / "whole.onnx")
    asked: list[list[str]] = []
    with blockwise(tmp_path / "whole.onnx", "onnxruntime", lambda names: asked.append(sorted(names))) as plan:
        assert set(plan.inputs) == {"x", "more"} and plan.outputs == ("y",) and len(plan.parts) == 4
        found = plan.run_all(samples)
    assert asked == [[], ["w0"], ["w1"], ["end", "w2"]]  # each before its part is loaded
    for sample, results in zip(samples, found, strict=True):
        assert results.keys() == {"y"} and np.allclose(results["y"], whole.run(sample)["y"], rtol=1e-6)
    assert [file.name for file in tmp_path.iterdir()] == ["whole.onnx"]


def test_a_segment_holds_its_own_weights(model: ir.Model) -> None:
    assert [sorted(part.graph.initializers) for part in segments(model)] == [[], ["w0"], ["w1"], ["end", "w2"]]


@pytest.mark.parametrize(("first", "second"), [("transformer_blocks.{}.attn1", "transformer_blocks.{}.norm2.linear"),
                                               ("encoder.block.{}.layer.0", "encoder.block.{}.layer.1.DenseReluDense")])  # fmt: skip
def test_a_block_has_two_halves(first: str, second: str) -> None:
    names = [half.format(block) for block in (0, 1, 11) for half in (first, second)]
    nodes = "\n".join(f'["{name}/Mul"] v{i + 1} = Mul(v{i}, w)' for i, name in enumerate(names))
    text = (
        GRAPH.split("main")[0] + f"main (float[n, 4] v0) => (float[n, 4] v6) <float[4] w = {{1, 2, 3, 4}}> {{{nodes}}}"
    )
    model = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(ir.from_onnx_text(text))))
    assert [[node.name for node in part.graph] for part in segments(model)] == [[f"{name}/Mul"] for name in names]


def test_a_graph_without_blocks_is_one_segment() -> None:
    model = ir.from_onnx_text(GRAPH.replace("transformer_blocks", "other"))
    (part,) = segments(model)
    assert {value.name for value in part.graph.inputs} == {"x", "more"}
    assert [node.op_type for node in part.graph] == [node.op_type for node in model.graph]
