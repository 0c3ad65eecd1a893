"""The parity gate passes a true graph and names the worst tensor of a false one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from onnxscript.optimizer import optimize_ir
from safetensors.torch import save_file
from torch import Tensor, nn

from reelquant.export import parity
from reelquant.export.models.cogvideox.graphs import SAMPLES, Graph
from reelquant.export.network import Network, fake_mode
from reelquant.export.parity import check_parity
from reelquant.export.passes.attach_weights import attach_weights
from reelquant.export.passes.name_by_module import name_by_module
from reelquant.export.trace import GraphSpec, trace
from reelquant.export.weights import read_header
from reelquant.quant.graph.graph_files import lay_out_graphs, save_graphs
from reelquant.runtime.errors import AccuracyError


class TwoOutputs(nn.Module):
    """A chunk and a cache, as the VAE's graphs have them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"first": nn.Linear(32, 32), "second": nn.Linear(32, 32)})

    def forward(self, x: Tensor, caches: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        y = self.inner["first"](x)
        if caches is not None:
            y = y + caches["cache.one"]
        return y, {"cache.one": self.inner["second"](x)}


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("parity") / "model.safetensors"
    save_file(TwoOutputs().state_dict(), file)
    mode = fake_mode()
    with mode:
        network = Network(TwoOutputs().eval(), mode, read_header(file))
    samples = tuple({"x": torch.randn(2, rows, 32), "cache.one": torch.randn(2, rows, 32)} for rows in (3, 5))
    axes = {"x": {1: "rows"}, "cache.one": {1: "rows"}}
    return Graph(GraphSpec("next", network.module, network, axes, ("y", "next_cache.one")), samples)


@pytest.fixture
def model(graph: Graph) -> ir.Model:
    model = trace(graph.spec, graph.samples[0])
    attach_weights(model, graph.spec.weights())
    optimize_ir(model)
    name_by_module(model, "inner")
    return model


def save(model: ir.Model, folder: Path) -> Path:
    return folder / save_graphs(folder / "part", {"next": model})["next"]


def test_a_true_graph_passes_at_both_sizes(graph: Graph, model: ir.Model, tmp_path: Path) -> None:
    report = check_parity(graph, save(model, tmp_path), "part")
    assert 0 <= report["relative_l2"] < 1e-5 and report["sizes"] == 2
    assert [str(dim) for dim in model.graph.inputs[0].shape or ()] == ["2", "rows", "32"]
    assert {node.name for node in model.graph} >= {"first", "second"}


def test_a_large_graph_is_checked_at_the_size_that_differs(
    graph: Graph, model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(model, tmp_path)
    monkeypatch.setattr(parity, "_LARGE", 2 * 4 * (32 * 32 + 32) - 1)
    report = check_parity(graph, path, "part")
    assert 0 <= report["relative_l2"] < 1e-5 and report["sizes"] == 1 and report["shape"] == [2, 5, 32]


def test_the_samples_differ_in_every_axis() -> None:
    first, second = (asdict(sample) for sample in SAMPLES)
    assert all(first[axis] != second[axis] for axis in first)


def test_weights_can_be_written_as_the_check_comes_to_them(graph: Graph, model: ir.Model, tmp_path: Path) -> None:
    files, weights = lay_out_graphs(tmp_path / "part", {"next": model})
    asked: set[str] = set()

    def prepare(names: Iterable[str]) -> None:
        asked.update(names)
        weights.write(names)

    assert check_parity(graph, tmp_path / files["next"], "part", prepare=prepare)["relative_l2"] < 1e-5
    assert asked >= weights.places.keys()


@pytest.mark.parametrize(("weight", "tensor"), [("first.bias", "y"), ("second.bias", "next_cache.one")])
def test_a_wrong_weight_is_named_by_its_output(
    weight: str, tensor: str, graph: Graph, model: ir.Model, tmp_path: Path
) -> None:
    value = model.graph.initializers[weight]
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() * 1.01, name=weight)
    with pytest.raises(AccuracyError, match=rf"part/next differs from torch: .* in {tensor} .*allowed 1e-04"):
        check_parity(graph, save(model, tmp_path), "part")
