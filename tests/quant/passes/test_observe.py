"""An observed graph reports what its linears read, sample by sample, and computes the same as before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from reelquant.quant.calibration import channels as statistics
from reelquant.quant.calibration.ranges import CHANNEL, HIGH, HISTOGRAM, LOW
from reelquant.quant.graph.linears import linear_nodes
from reelquant.quant.passes.observe import observe
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
    assert outputs == ["out", *(name + end for name in dict.fromkeys(names) for end in (LOW, HIGH, HISTOGRAM))]
    assert {value.dtype for value in graph.graph.outputs} == {ir.DataType.FLOAT, ir.DataType.INT64}


@EACH_ENGINE
def test_channels_and_histograms(tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against NumPy, whole and in blocks."""
    weights, fed = parameters(), feeds(batch=2)
    seen: dict[str, Array] = {}

    def multiply(name: str, x: Array, weight: Array) -> Array:
        seen[name] = x.reshape(-1, x.shape[-1])
        return x @ weight

    forward(weights, fed, multiply)
    monkeypatch.setattr(statistics, "_LARGEST_BLOCK", 40)  # feed-forwards' 64 channels are then two blocks of 32
    graph = model(weights)
    linears = {linear.name: linear for linear in linear_nodes(graph)}
    observe(graph, [x.activation for x in linears.values()], {x.activation: x.shape[0] for x in linears.values()})
    results = run(graph, engine, fed, tmp_path)
    for name, linear in linears.items():
        x, read = seen[name], linear.activation
        for part, wanted in (("low", x.min(0)), ("high", x.max(0)), ("mean", x.mean(0))):
            np.testing.assert_allclose(results[f"{read}{CHANNEL}{part}"], wanted, rtol=0, atol=1e-4)
        blocks = 2 if x.shape[1] > 40 else 1
        cut = x.reshape(len(x), blocks, -1)
        second = np.einsum("tbi,tbj->bij", cut, cut)
        np.testing.assert_allclose(results[f"{read}{CHANNEL}second"], second, rtol=0, atol=1e-3)
        counts = results[read + HISTOGRAM]
        assert counts.dtype == np.int64 and counts.sum() == x.size
        edges = statistics.bin_edges()
        wanted, _ = np.histogram(np.abs(x).clip(edges[0], edges[-1]), edges)
        # A value at an edge may fall to either side, and far out in a GELU's tail float32 says zero.
        assert np.abs(counts - wanted).sum() <= 0.03 * x.size


def test_a_histogram_takes_every_magnitude(tmp_path: Path) -> None:
    x = np.array([[0.0, 1e-30, 1.0, -1.0, 1.9, 3e9, -1e30]], np.float32)
    value = ir.val("x", ir.DataType.FLOAT, [1, 7])
    copy = ir.node("Identity", [value], outputs=[ir.val("y", ir.DataType.FLOAT, [1, 7])])
    graph = ir.Model(ir.Graph([value], [copy.outputs[0]], nodes=[copy], opset_imports={"": 23}), ir_version=10)
    observe(graph, ["x"])
    counts = run(graph, "onnxruntime", {"x": x}, tmp_path)["x" + HISTOGRAM]
    one = -statistics.LOWEST_OCTAVE * statistics.OCTAVE
    assert {int(place): int(counts[place]) for place in np.flatnonzero(counts)} == {
        0: 2, one: 2, one + 14: 1, statistics.BINS - 1: 2
    }  # fmt: skip


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
