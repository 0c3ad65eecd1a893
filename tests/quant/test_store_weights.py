"""Weights stored in fewer bits: the graph has exactly the rounded values, on both engines, and computes in float32."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from reelquant.quant.graph.graph_files import load_graph, save_graphs
from reelquant.quant.passes.store_weights import LEAST_TABLE, rounded, store_weights
from reelquant.runtime.engines.registry import open_onnx
from reelquant.runtime.relative_l2 import relative_l2

ROWS, WIDTH, OUT = LEAST_TABLE // 64, 64, 48
GRAPH = f"""<ir_version: 10, opset_import: ["" : 21]>
main (int64[n] ids) => (float[n, {OUT}] y) {{
 found = Gather(table, ids)
 y = MatMul(found, weight)
}}"""


@pytest.fixture
def weights() -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    rng = np.random.default_rng(0)
    scales = np.exp(rng.normal(0, 1, OUT)).astype(np.float32)
    return {
        "table": rng.standard_normal((ROWS, WIDTH), dtype=np.float32),
        "weight": rng.standard_normal((WIDTH, OUT), dtype=np.float32) * scales,
    }


@pytest.fixture
def model(weights: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]) -> ir.Model:
    model = ir.from_onnx_text(GRAPH)
    for name, array in weights.items():
        value = next(v for node in model.graph for v in node.inputs if v is not None and v.name == name)
        value.const_value = ir.tensor(array, name=name)
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.FLOAT)
        model.graph.register_initializer(value)
    return model


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("storage", ["bf16", "int8"])
def test_a_stored_graph_has_the_rounded_weights(
    storage: str,
    engine: str,
    model: ir.Model,
    weights: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]],
    tmp_path: Path,
) -> None:
    assert store_weights(model, storage) == {"linears": 1, "tables": 1}
    save_graphs(tmp_path / "part", {"main": model})
    ids = np.array([3, 0, ROWS - 1])
    found = open_onnx(engine, tmp_path / "part" / "main.onnx").run({"ids": ids})["y"]
    weight = rounded(np.ascontiguousarray(weights["weight"].T), storage).T
    exact = weights["table"][ids] @ weights["weight"]
    wanted = rounded(weights["table"], storage, table=True)[ids] @ weight
    assert relative_l2(found, wanted) <= 1e-6  # an engine that quantizes what it multiplies is 1e-2 away
    assert 1e-4 < relative_l2(found, exact) < 3e-2
    if storage == "int8":
        columns = np.abs(weights["weight"]).max(axis=0)
        assert (np.abs(weight - weights["weight"]) <= columns / 127 / 2 * 1.001).all()


def test_what_is_stored_is_small(model: ir.Model, tmp_path: Path) -> None:
    store_weights(model, "int8")
    save_graphs(tmp_path / "part", {"main": model})
    stored = load_graph(tmp_path / "part" / "main.onnx").graph.initializers
    assert {name: value.dtype for name, value in stored.items() if "scale" not in name} == {
        "table_bf16": ir.DataType.BFLOAT16,
        "weight_int8": ir.DataType.INT8,
    }


def test_fp32_changes_nothing(model: ir.Model) -> None:
    before = [node.op_type for node in model.graph]
    assert store_weights(model, "fp32") == {"linears": 0, "tables": 0}
    assert [node.op_type for node in model.graph] == before and set(model.graph.initializers) == {"table", "weight"}


def test_bf16_values_stay_as_they_are() -> None:
    values = np.arange(-8, 8, 0.125, dtype=np.float32).reshape(16, 8)
    assert np.array_equal(values.astype(ml_dtypes.bfloat16).astype(np.float32), values)
    assert np.array_equal(rounded(values, "bf16"), values)


def test_an_unknown_storage(model: ir.Model) -> None:
    with pytest.raises(ValueError, match="unknown storage 'int4'; one of fp32, bf16, int8"):
        store_weights(model, "int4")
