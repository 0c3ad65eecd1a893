"""Graphs that share a weight file: what safetensors reads in it, and what the engines do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file

from reelquant.quant.graph.graph_files import WEIGHTS, lay_out_graphs, load_graph, load_mapped, save_graphs
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.registry import open_onnx
from tests.quant.engines import EACH_ENGINE

SHARED = np.arange(32 * 8, dtype=np.float32).reshape(32, 8) / 50
OWN = {
    "first": np.full((8, 64), 0.25, np.float32),
    "next": np.linspace(-1, 1, 8 * 128, dtype=np.float32).reshape(8, 128),
}
X = np.random.default_rng(0).normal(0, 1, (3, 32)).astype(np.float32)


def graph(name: str, shared: NDArray[Any] = SHARED) -> ir.Model:
    """x → (x · shared + small) · own, with a float16 copy and an integer tensor along."""
    x = ir.val("x", ir.DataType.FLOAT, ["n", 32])
    weights = {"shared": shared, f"{name}.own": OWN[name], "small": np.ones(8, np.float32)}
    values = {key: ir.val(key, const_value=ir.tensor(array, name=key)) for key, array in weights.items()}
    product = ir.node("MatMul", [x, values["shared"]])
    added = ir.node("Add", [product.outputs[0], values["small"]])
    last = ir.node("MatMul", [added.outputs[0], values[f"{name}.own"]])
    out = last.outputs[0]
    out.name, out.dtype, out.shape = "y", ir.DataType.FLOAT, ir.Shape(["n", OWN[name].shape[1]])
    made = ir.Graph(
        [x], [out], nodes=[product, added, last], initializers=[*values.values()], opset_imports={"": 21}, name=name
    )
    return ir.Model(made, ir_version=10)


def test_a_shared_weight_is_stored_once_and_any_tool_reads_it(tmp_path: Path) -> None:
    files = save_graphs(tmp_path / "vae", {name: graph(name) for name in OWN})
    assert files == {"first": "vae/first.onnx", "next": "vae/next.onnx"}
    stored = load_file(tmp_path / "vae" / WEIGHTS)
    expected: dict[str, NDArray[Any]] = {"shared": SHARED, "first.own": OWN["first"], "next.own": OWN["next"]}
    assert stored.keys() == expected.keys()  # small ones stay in the graphs
    for name, array in expected.items():
        assert np.array_equal(stored[name], array) and stored[name].dtype == array.dtype
    bytes_of_weights = sum(array.nbytes for array in expected.values())
    assert (tmp_path / "vae" / WEIGHTS).stat().st_size == 4096 + bytes_of_weights  # a page of header
    assert all((tmp_path / file).stat().st_size < 1000 for file in files.values())


def test_weights_are_written_in_any_order_and_once(tmp_path: Path) -> None:
    save_graphs(tmp_path / "whole" / "vae", {name: graph(name) for name in OWN})
    _, weights = lay_out_graphs(tmp_path / "vae", {name: graph(name) for name in OWN})
    before = (tmp_path / "vae" / WEIGHTS).stat().st_size
    weights.write(["next.own", "small", "elsewhere"])  # the small one lies in the graphs
    stored = load_file(tmp_path / "vae" / WEIGHTS)
    assert np.array_equal(stored["next.own"], OWN["next"]) and not stored["shared"].any()
    weights.write(["shared", "next.own"])
    weights.finish()
    assert (tmp_path / "vae" / WEIGHTS).read_bytes() == (tmp_path / "whole" / "vae" / WEIGHTS).read_bytes()
    assert (tmp_path / "vae" / WEIGHTS).stat().st_size == before


@EACH_ENGINE
def test_engines_run_both_graphs(tmp_path: Path, engine: str) -> None:
    files = save_graphs(tmp_path / "vae", {name: graph(name) for name in OWN})
    for name, file in files.items():
        y = open_onnx(engine, tmp_path / file, EngineOptions(threads=1)).run({"x": X})["y"]
        assert np.allclose(y, (X @ SHARED + 1) @ OWN[name], atol=1e-4)


def test_every_dtype_is_read_back_equal(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(0, 4, 1024)
    kinds = ["FLOAT", "FLOAT16", "BFLOAT16", "FLOAT8E4M3FN", "INT8", "UINT8", "INT32", "INT64", "BOOL"]
    arrays = {kind: np.abs(values).astype(ir.DataType[kind].numpy()) for kind in kinds}
    tensors = [ir.val(kind, const_value=ir.Tensor(array, name=kind)) for kind, array in arrays.items()]
    made = ir.Graph([], [], nodes=[], initializers=tensors, opset_imports={"": 21}, name="all")
    save_graphs(tmp_path / "all", {"all": ir.Model(made, ir_version=10)})
    loaded = load_graph(tmp_path / "all" / "all.onnx").graph.initializers
    with safe_open(tmp_path / "all" / WEIGHTS, "np") as stored:
        assert set(stored.keys()) == set(kinds)
        for kind, array in arrays.items():
            tensor = loaded[kind].const_value
            assert isinstance(tensor, ir.ExternalTensor) and tensor.tobytes() == array.tobytes()
            assert (tensor.offset or 0) % array.itemsize == 0
            if kind not in ("BFLOAT16", "FLOAT8E4M3FN"):  # which safetensors' numpy side does not return as such
                assert np.array_equal(stored.get_tensor(kind), array)


def test_one_name_for_two_weights_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shared differs between the graphs first, next"):
        save_graphs(tmp_path / "vae", {"first": graph("first"), "next": graph("next", SHARED + 1)})
    with pytest.raises(ValueError, match="shared differs"):
        save_graphs(tmp_path / "vae", {"first": graph("first"), "next": graph("next", SHARED.reshape(8, 32))})
    save_graphs(tmp_path / "vae", {"first": graph("first"), "next": graph("next", SHARED.copy())})


def test_saving_does_not_change_the_models(tmp_path: Path) -> None:
    model = graph("first")
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    save_graphs(tmp_path / "a", {"first": model})
    save_graphs(tmp_path / "b", {"first": model})
    assert before == {name: value.const_value for name, value in model.graph.initializers.items()}
    for file in (WEIGHTS, "first.onnx"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_loaded_graph_is_saved_again_elsewhere(tmp_path: Path) -> None:
    save_graphs(tmp_path / "a", {"first": graph("first")})
    save_graphs(tmp_path / "b", {"first": load_graph(tmp_path / "a" / "first.onnx")})
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()


def test_weights_with_a_second_hard_link_can_be_mapped(tmp_path: Path) -> None:
    """As a killed calibration leaves them; onnx-ir takes the link for an attack."""
    save_graphs(tmp_path / "a", {"first": graph("first")})
    os.link(tmp_path / "a" / WEIGHTS, tmp_path / "link")
    model = load_graph(tmp_path / "a" / "first.onnx")
    external = model.graph.initializers["shared"].const_value
    assert external is not None
    with pytest.raises(ValueError, match="hard link"):
        external.numpy()
    model = load_mapped(tmp_path / "a" / "first.onnx")
    mapped = model.graph.initializers["shared"].const_value
    assert mapped is not None and np.array_equal(mapped.numpy(), SHARED) and mapped.name == "shared"
    save_graphs(tmp_path / "b", {"first": model})
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()


def test_only_our_own_file_is_mapped(tmp_path: Path) -> None:
    save_graphs(tmp_path / "a", {"first": graph("first")})
    model = load_graph(tmp_path / "a" / "first.onnx")
    shared = model.graph.initializers["shared"]
    assert isinstance(shared.const_value, ir.ExternalTensor)
    away = ir.ExternalTensor(
        "../x", 0, SHARED.nbytes, ir.DataType.FLOAT, shape=ir.Shape([32, 8]), name="shared", base_dir=tmp_path / "a"
    )
    shared.const_value = away
    ir.save(model, tmp_path / "a" / "away.onnx")
    kept = load_mapped(tmp_path / "a" / "away.onnx").graph.initializers
    assert isinstance(kept["shared"].const_value, ir.ExternalTensor)
    assert isinstance(kept["first.own"].const_value, ir.LazyTensor)
