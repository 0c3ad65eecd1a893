"""An observed graph reports what its linears read, sample by sample, and computes the same as before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from reelquant.quant.linears import linear_nodes
from reelquant.quant.passes.observe import observe
from reelquant.quant.ranges import HIGH, LOW
from tests.quant.engines import EACH_ENGINE, run
from tests.quant.tiny import SHAPES, Array, feeds, forward, model, parameters


@EACH_ENGINE
def test_each_sample_reports_its_own_range(tmp_path: Path, engine: str) -> None:
    weights, fed = parameters(), feeds(batch=3)
    seen: dict[str, Array] = {}

    def multiply(name: str, x: Array, weight: Array) -> Array:
        seen[name] = x.reshape(len(x), -1)
        return x @ weight

    expected = forward(weights, fed, multiply)
    graph = model(weights)
    linears = linear_nodes(graph)
    observe(graph, [linear.activation for linear in linears])
    results = run(graph, engine, fed, tmp_path)

    np.testing.assert_allclose(results["out"], expected, rtol=0, atol=1e-4)
    assert seen.keys() == SHAPES.keys() == {linear.name for linear in linears}
    for linear in linears:
        low, high = results[linear.activation + LOW], results[linear.activation + HIGH]
        assert low.dtype == high.dtype == np.float32 and low.shape == high.shape == (3,)
        np.testing.assert_allclose(low, seen[linear.name].min(1), rtol=0, atol=1e-4)
        np.testing.assert_allclose(high, seen[linear.name].max(1), rtol=0, atol=1e-4)
        assert len(set(low.tolist())) == 3


@EACH_ENGINE
def test_an_observed_graph_takes_any_batch_and_length(tmp_path: Path, engine: str) -> None:
    graph = model(parameters())
    name = linear_nodes(graph)[-1].activation
    observe(graph, [name])
    for batch, tokens in ((1, 4), (2, 17)):
        results = run(graph, engine, feeds(batch=batch, tokens=tokens), tmp_path)
        assert results["out"].shape[:2] == (batch, tokens)
        assert results[name + LOW].shape == results[name + HIGH].shape == (batch,)


def test_a_shared_activation_is_observed_once() -> None:
    graph = model(parameters())
    names = [linear.activation for linear in linear_nodes(graph)]
    # In both blocks to_q, to_k and to_v share one activation; all five AdaLN linears read the time embedding.
    assert (len(names), len(set(names))) == (20, 12)
    assert observe(graph, names) == 12
    outputs = [str(value.name) for value in graph.graph.outputs]
    assert outputs == ["out", *(name + end for name in dict.fromkeys(names) for end in (LOW, HIGH))]
    assert all(value.dtype == ir.DataType.FLOAT for value in graph.graph.outputs)


def test_nothing_to_observe_leaves_the_graph_alone() -> None:
    graph = model(parameters())
    before = len(graph.graph), len(graph.graph.initializers)
    assert observe(graph, []) == 0
    assert (len(graph.graph), len(graph.graph.initializers)) == before


def test_an_unknown_tensor_is_named() -> None:
    graph = model(parameters())
    with pytest.raises(ValueError, match="no tensor named 'typo'"):
        observe(graph, ["latents", "typo"])
    assert len(graph.graph.outputs) == 1
