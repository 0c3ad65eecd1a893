"""A rotation changes weights and what is quantized, and no result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reelquant.quant.evaluation.teacher import Difference, Trial, velocities
from reelquant.quant.graph.attentions import attention_nodes
from reelquant.quant.graph.linears import linear_nodes
from reelquant.quant.passes.rotate import hadamard, rotate
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.registry import get_engine
from reelquant.runtime.errors import BadInput
from tests.command_line import run as command
from tests.conftest import BundleMaker
from tests.quant.engines import EACH_ENGINE, run
from tests.quant.tiny import BLOCKS, DIM, feeds, model, parameters


@pytest.mark.parametrize("side", [2, 8, 64])
def test_a_hadamard_matrix(side: int) -> None:
    found = hadamard(side)
    np.testing.assert_allclose(found @ found, np.eye(side), atol=1e-6)
    assert (found == found.T).all() and np.allclose(np.abs(found), side**-0.5)


@EACH_ENGINE
@pytest.mark.parametrize("head", [8, DIM])
def test_the_result_stays(head: int, engine: str, tmp_path: Path) -> None:
    graph = model(parameters())
    outlier = next(linear for linear in linear_nodes(graph) if linear.name.endswith("to_v"))
    assert rotate(graph, head) == BLOCKS
    plain, found = (run(each, engine, feeds(), tmp_path)["out"] for each in (model(parameters()), graph))
    np.testing.assert_allclose(found, plain, rtol=0, atol=1e-5)
    changed = graph.graph.initializers[outlier.weight].const_value
    assert changed is not None and not np.allclose(changed.numpy(), parameters()[outlier.weight])


def test_what_has_no_hadamard_matrix() -> None:
    for head in (0, 1, 48):
        with pytest.raises(BadInput, match=f"a head of {head} channels has no Hadamard matrix here"):
            rotate(model(parameters()), head)
    with pytest.raises(BadInput, match=r"attn1 has no to_v and to_out.0 of whole heads of 64 channels"):
        rotate(model(parameters()), 64)
    graph = model(parameters())
    attention = attention_nodes(graph)[0]
    attention.softmax.name = "somewhere/Softmax"
    with pytest.raises(BadInput, match="somewhere has no to_v"):
        rotate(graph, 8)


def test_a_bundle_is_rotated(demo_bundle: BundleMaker, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = demo_bundle("t2v", "fp32")
    ran = command(capfd, "rotate", source.path, tmp_path / "out")
    assert ran.code == 0 and "6 attentions rotated" in ran.out
    bundle = Bundle.open(tmp_path / "out")
    bundle.check_hashes()
    assert bundle.manifest.precision == "fp32" and bundle.digest != source.digest
    steps = Trial("demo", prompts=1, steps=1).record(source)
    plan = get_engine("onnxruntime").open_component(bundle, "transformer", EngineOptions("onnxruntime"), "main")["main"]
    found = zip(velocities(plan, steps), steps, strict=True)
    assert 0 < max(Difference.of(velocity, step.velocity).rel_l2 for velocity, step in found) < 1e-5
    refused = command(capfd, "rotate", demo_bundle("t2v", "int8").path, tmp_path / "no")
    assert refused.code == 2 and "start from the fp32 bundle" in refused.err
