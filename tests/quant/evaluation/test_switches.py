"""A graph with switches: all off is the fp32 graph, all on the quantized one, and errors of single products add up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from reelquant.quant.evaluation.switches import SWITCHES, add_switches
from reelquant.quant.passes.insert_qdq import insert_qdq
from reelquant.quant.recipe import Recipe
from tests.quant.engines import EACH_ENGINE, run
from tests.quant.tiny import Array, feeds, model, parameters
from tests.quant.tiny_ranges import calibrated

EVERYTHING = Recipe.parse('name="all"\ndescription="x"\nrules=[{match="*", numerics="int8"}]')


def switched(recipe: Recipe, folder: Path) -> tuple[list[str], ir.Model, ir.Model, ir.Model]:
    weights = parameters(1)
    ranges = calibrated(model(weights), feeds(2), folder)
    high, quantized, both = (model(weights) for _ in range(3))
    insert_qdq(quantized, ranges, recipe)
    insert_qdq(both, ranges, recipe)
    return add_switches(both, model(weights)), high, quantized, both


@EACH_ENGINE
@pytest.mark.parametrize("recipe", ["int8", "fp8", "int8-weight", "everything"])
def test_off_is_high_and_on_is_quantized(recipe: str, engine: str, tmp_path: Path) -> None:
    chosen = EVERYTHING if recipe == "everything" else Recipe.load(recipe)
    names, high, quantized, both = switched(chosen, tmp_path)
    assert len(names) == {"int8": 12, "fp8": 18, "int8-weight": 16, "everything": 19}[recipe]
    fed = feeds(2)
    plain, wanted = (run(graph, engine, fed, tmp_path)["out"] for graph in (high, quantized))

    def found(on: set[int]) -> Array:
        switches = np.array([number in on for number in range(len(names))])
        return run(both, engine, {**fed, SWITCHES: switches}, tmp_path)["out"]

    # An engine may sum in another order where it cannot fuse the same nodes; a rounding boundary may then be crossed.
    assert np.abs(found(set()) - plain).max() < 1e-5 * np.abs(plain).max()
    everything = found(set(range(len(names))))
    assert np.linalg.norm(everything - wanted) < 0.1 * np.linalg.norm(wanted - plain)
    one = np.linalg.norm(found({3}) - plain)
    assert 0 < one < np.linalg.norm(everything - plain)


def test_a_linear_without_a_bias_is_switched_behind_the_one_it_got(tmp_path: Path) -> None:
    weights, fed = parameters(), feeds()

    def without_bias() -> ir.Model:
        graph = model(weights)
        for node in list(graph.graph):
            if node.op_type == "Add" and node.inputs[1] is not None and node.inputs[1].name == "proj_out.bias":
                product = node.inputs[0]
                assert product is not None
                graph.graph.outputs.clear()
                graph.graph.remove(node, safe=True)
                product.name = "out"
                graph.graph.outputs.append(product)
        del graph.graph.initializers["proj_out.bias"]
        return graph

    ranges = calibrated(without_bias(), fed, tmp_path)
    rules = 'rules=[{match="*.ff.net.*", numerics="int8"}]\nmethod={strength=0.8, shift=true, rounding="gptq"}'
    recipe = Recipe.parse(f'name="x"\ndescription="x"\n{rules}')
    both = without_bias()
    insert_qdq(both, ranges, recipe)
    names = add_switches(both, without_bias())
    plain = run(without_bias(), "onnxruntime", fed, tmp_path)["out"]
    off = run(both, "onnxruntime", {**fed, SWITCHES: np.zeros(len(names), bool)}, tmp_path)["out"]
    np.testing.assert_allclose(off, plain, rtol=0, atol=1e-5 * np.abs(plain).max())
