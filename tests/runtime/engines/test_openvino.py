"""OpenVINO: compiled for the shapes of a run, at rest between clips, and in bf16 where the graph allows it and the CPU can."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from reelquant.quant.graph.attentions import attention_nodes
from reelquant.quant.graph.graph_files import load_graph
from reelquant.quant.passes.mark_bf16 import mark_bf16
from reelquant.runtime.engines.openvino import compiled, kernels
from reelquant.runtime.engines.openvino.model import attention_in_bf16, rotate_by_products
from reelquant.runtime.engines.openvino.session import OpenVinoSession
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.registry import get_engine, open_onnx
from reelquant.runtime.engines.session import BF16_ALL, BF16_ATTENTION, Array
from reelquant.runtime.machine import memory
from tests.conftest import ROOT, BundleMaker

ATTENTION = """<ir_version: 10, opset_import: ["" : 21]>
attention (float[b, n, 64] q, float[b, 64, n] k, float[b, n, 64] v, float[64, 64] w) => (float[b, n, 64] y) {
 scores = MatMul(q, k)
 weights = Softmax<axis = -1>(scores)
 mixed = MatMul(weights, v)
 y = MatMul(mixed, w)
}"""


def feeds(tokens: int = 80, batch: int = 2) -> dict[str, Array]:
    rng = np.random.default_rng(tokens)
    shapes = {"q": (batch, tokens, 64), "k": (batch, 64, tokens), "v": (batch, tokens, 64), "w": (64, 64)}
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def saved(folder: Path, bf16: str = "") -> Path:
    model = ir.from_onnx_text(ATTENTION)
    if bf16:
        mark_bf16(model, bf16)
    path = folder / f"{bf16 or 'fp32'}.onnx"
    ir.save(model, path)
    return path


def error(found: Array, wanted: Array) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("lean", [False, True])
def test_what_was_compiled_is_kept_for_some_shapes(lean: bool, tmp_path: Path) -> None:
    graph = saved(tmp_path)
    session = OpenVinoSession(graph, 1, lean)
    reference = open_onnx("onnxruntime", graph)
    assert not session._compiled  # nothing is known yet
    for tokens in (16, 24, 32, 40, 16, 40, 40):
        fed = feeds(tokens)
        assert error(session.run(fed)["y"], reference.run(fed)["y"]) < 1e-5
    assert len(session._compiled) == (1 if lean else 3)
    assert next(reversed(session._compiled))[0] == (2, 40, 64)  # the last that was used is the last to go


@pytest.mark.parametrize("short", [False, True])
def test_a_session_at_rest_answers_as_before(short: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What only a run needs is given back where memory is short, and nothing is compiled again."""
    monkeypatch.setattr(memory, "available_memory", lambda: 0 if short else 1 << 60)
    session = OpenVinoSession(saved(tmp_path), 1, lean=False)
    first = session.run(feeds())["y"]
    compiled = dict(session._compiled)
    session.rest()
    assert bool(session._requests) != short
    assert np.array_equal(session.run(feeds())["y"], first) and session._compiled == compiled


@pytest.mark.parametrize("what", [BF16_ATTENTION, BF16_ALL])
def test_a_graph_says_what_may_be_in_bf16(what: str, tmp_path: Path) -> None:
    """bf16 has 8 bits of mantissa: an error of 2⁻⁹ a value. On a CPU without units for it nothing changes."""
    exact = open_onnx("onnxruntime", saved(tmp_path)).run(feeds())["y"]
    assert error(open_onnx("openvino", saved(tmp_path)).run(feeds())["y"], exact) < 1e-5
    marked = open_onnx("openvino", saved(tmp_path, what)).run(feeds())["y"]
    assert marked.dtype == np.float32
    if kernels.multiplies_bf16():
        assert 1e-4 < error(marked, exact) < 2e-2
    else:
        assert error(marked, exact) < 1e-5
    # The other engine computes the same file as it is.
    assert np.array_equal(open_onnx("onnxruntime", saved(tmp_path, what)).run(feeds())["y"], exact)


def test_a_word_that_nobody_knows_changes_nothing(tmp_path: Path) -> None:
    exact = open_onnx("openvino", saved(tmp_path)).run(feeds())["y"]
    assert np.array_equal(open_onnx("openvino", saved(tmp_path, "everywhere")).run(feeds())["y"], exact)


def test_every_attention_of_a_transformer_is_found(demo_bundle: BundleMaker) -> None:
    graph = demo_bundle("t2v", "fp32").graph("transformer", "main")
    model: Any = kernels.core().read_model(str(graph))
    assert attention_in_bf16(model) == len(attention_nodes(load_graph(graph))) > 0


CAPPED = """
import json, sys
from pathlib import Path
import numpy as np
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.registry import get_engine, open_onnx
from reelquant.runtime.engines.openvino.kernels import multiplies_bf16
fed = dict(np.load(sys.argv[1]))
print(json.dumps([multiplies_bf16(), [open_onnx("openvino", Path(path)).run(fed)["y"].tolist() for path in sys.argv[2:]]]))
"""


@pytest.mark.parametrize("units", ["AVX2", "AVX512_CORE", "AVX512_CORE_VNNI"])
def test_where_bf16_is_taken_away_it_is_fp32(units: str, tmp_path: Path) -> None:
    """Under oneDNN's own switch the units are there and may not be used. OpenVINO would emulate them wherever there is AVX-512, as on
    all CPUs with AVX-512 that have no bf16 themselves, in many times the time."""
    np.savez(tmp_path / "fed.npz", **feeds(24))  # type: ignore[arg-type]
    exact = open_onnx("onnxruntime", saved(tmp_path)).run(feeds(24))["y"]
    graphs = [str(saved(tmp_path, what)) for what in (BF16_ATTENTION, BF16_ALL)]
    command = [sys.executable, "-c", CAPPED, str(tmp_path / "fed.npz"), *graphs]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DNNL_MAX_CPU_ISA": units}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    multiplies, found = json.loads(ran.stdout.splitlines()[-1])
    assert not multiplies and all(error(np.array(each, np.float32), exact) < 1e-5 for each in found)


ROTATION = """<ir_version: 10, opset_import: ["" : 21]>
rotation (float[b, h, n, 8] x, float[n, 8] cos, float[n, 8] sin) => (float[b, h, n, 8] y)
<int64[5] pairs = {0, 0, 0, 4, 2}, int64[4] flat = {0, 0, 0, 8}, int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2},
 int64[1] axis = {AXIS}, int64[1] last = {-1}> {
 folded = Reshape(x, pairs)
 first = Slice(folded, ODD, ODD_END, axis)
 odd = Squeeze(first, last)
 second = Slice(folded, EVEN, EVEN_END, axis)
 even = Squeeze(second, last)
 negative = Neg(odd)
 left = Unsqueeze(negative, last)
 right = Unsqueeze(even, last)
 stacked = Concat <axis = -1> (left, right)
 turned = Reshape(stacked, flat)
 a = Mul(x, cos)
 b = Mul(turned, sin)
 y = Add(a, b)
}"""

ROTATION_16 = ROTATION.replace("float[", "float16[").replace("AXIS", "-1")
for _name, _value in (("ODD_END", "two"), ("EVEN_END", "one"), ("ODD", "one"), ("EVEN", "zero")):
    ROTATION_16 = ROTATION_16.replace(_name, _value)


def rotation(folder: Path, odd: tuple[str, str] = ("one", "two"), even: tuple[str, str] = ("zero", "one")) -> Path:
    text = ROTATION.replace("AXIS", "-1")
    for name, (start, end) in (("ODD", odd), ("EVEN", even)):
        text = text.replace(f"{name}_END", end).replace(name, start)
    ir.save(ir.from_onnx_text(text), folder / "rotation.onnx")
    return folder / "rotation.onnx"


def rotated(graph: Path) -> int:
    return rotate_by_products(kernels.core().read_model(str(graph)))


def test_rotary_positions_are_a_product_and_exact(tmp_path: Path) -> None:
    graph = rotation(tmp_path)
    rng = np.random.default_rng(0)
    fed = {
        name: rng.standard_normal((2, 3, 5, 8)[-rank:], dtype=np.float32)
        for name, rank in (("x", 4), ("cos", 2), ("sin", 2))
    }
    assert rotated(graph) == 1
    turned = open_onnx("openvino", graph).run(
        {**fed, "cos": np.zeros_like(fed["cos"]), "sin": np.ones_like(fed["sin"])}
    )["y"]
    pairs = fed["x"].reshape(2, 3, 5, 4, 2)
    assert np.array_equal(turned, np.stack([-pairs[..., 1], pairs[..., 0]], -1).reshape(fed["x"].shape))
    assert error(open_onnx("openvino", graph).run(fed)["y"], open_onnx("onnxruntime", graph).run(fed)["y"]) < 1e-6


def test_a_graph_in_16_bit_rotates_in_16_bit(tmp_path: Path) -> None:
    model = ir.from_onnx_text(ROTATION_16)
    ir.save(model, tmp_path / "half.onnx")
    rng = np.random.default_rng(0)
    fed = {
        name: rng.standard_normal(shape).astype(np.float16)
        for name, shape in (("x", (1, 1, 3, 8)), ("cos", (3, 8)), ("sin", (3, 8)))
    }
    found = open_onnx("openvino", tmp_path / "half.onnx").run(fed)["y"]
    wanted = open_onnx("onnxruntime", tmp_path / "half.onnx").run(fed)["y"]
    assert rotated(tmp_path / "half.onnx") == 1 and found.dtype == np.float16
    assert error(found.astype(np.float32), wanted.astype(np.float32)) < 1e-3


def test_what_is_no_such_rotation_is_left(tmp_path: Path) -> None:
    """The same nodes, with the halves the other way round: another function, which no matrix of ours stands for."""
    graph = rotation(tmp_path, ("zero", "one"), ("one", "two"))
    fed = {
        "x": np.ones((1, 1, 1, 8), np.float32),
        "cos": np.zeros((1, 8), np.float32),
        "sin": np.ones((1, 8), np.float32),
    }
    assert rotated(graph) == 0
    assert np.array_equal(open_onnx("openvino", graph).run(fed)["y"], open_onnx("onnxruntime", graph).run(fed)["y"])


@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_every_rotation_of_a_transformer_is_found(task: str, demo_bundle: BundleMaker) -> None:
    """Queries and keys of every block; and nothing in the VAE."""
    bundle = demo_bundle(task, "fp32")
    blocks = int(bundle.manifest.transformer["num_layers"])
    assert rotated(bundle.graph("transformer", "main")) == 2 * blocks
    assert rotated(bundle.graph("vae_decoder", "next")) == 0


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that keeps even what is compiled in no time."""
    monkeypatch.setenv("REELQUANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiled, "_LEAST", 0.0)
    return tmp_path / "cache" / "openvino"


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The graphs that are compiled from now on."""
    seen: list[Path] = []
    real = OpenVinoSession._compile

    def compile(self: OpenVinoSession, shapes: Any) -> Any:
        seen.append(self._graph)
        return real(self, shapes)

    monkeypatch.setattr(OpenVinoSession, "_compile", compile)
    return seen


@pytest.mark.parametrize("what", ["", BF16_ATTENTION, BF16_ALL])
def test_what_was_compiled_before_is_loaded(
    what: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, seen = saved(tmp_path, what), counted(monkeypatch)
    first, again = (OpenVinoSession(graph, 1, lean=False, cached=True).run(feeds())["y"] for _ in range(2))
    assert len(seen) == 1 and np.array_equal(first, again)
    # Another shape, number of threads or way to open it is another model.
    OpenVinoSession(graph, 1, lean=False, cached=True).run(feeds(24))
    OpenVinoSession(graph, 2, lean=False, cached=True).run(feeds())
    OpenVinoSession(graph, 1, lean=True, cached=True).run(feeds())
    assert len(seen) == 4 and len(list(cache.glob("*.json"))) == len(list(cache.glob("*.blob"))) == 4


def test_another_graph_of_the_same_name_is_another(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, seen = saved(tmp_path), counted(monkeypatch)
    OpenVinoSession(graph, 1, lean=False, cached=True).run(feeds())
    ir.save(ir.from_onnx_text(ATTENTION.replace("y = MatMul(mixed, w)", "y = Add(mixed, mixed)")), graph)
    wanted = open_onnx("onnxruntime", graph).run(feeds())["y"]
    assert error(OpenVinoSession(graph, 1, lean=False, cached=True).run(feeds())["y"], wanted) < 1e-5 and len(seen) == 2


@pytest.mark.parametrize("harm", ["blob", "facts", "gone"])
def test_a_damaged_entry_is_compiled_again(
    harm: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, seen = saved(tmp_path), counted(monkeypatch)
    wanted = OpenVinoSession(graph, 1, lean=False, cached=True).run(feeds())["y"]
    (blob,), (facts,) = cache.glob("*.blob"), cache.glob("*.json")
    if harm == "blob":
        data = bytearray(blob.read_bytes())
        data[len(data) // 2] ^= 1
        blob.write_bytes(data)
    elif harm == "facts":
        facts.write_text("{")
    else:
        blob.unlink()
    assert (
        np.array_equal(OpenVinoSession(graph, 1, lean=False, cached=True).run(feeds())["y"], wanted) and len(seen) == 2
    )
    assert (
        np.array_equal(OpenVinoSession(graph, 1, lean=False, cached=True).run(feeds())["y"], wanted) and len(seen) == 2
    )


def test_a_cache_that_cannot_be_written_stops_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    assert OpenVinoSession(saved(tmp_path), 1, lean=False, cached=True).run(feeds())["y"].shape == (2, 80, 64)


def test_large_models_and_quick_ones_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REELQUANT_CACHE", str(tmp_path / "cache"))
    graph, seen = saved(tmp_path), counted(monkeypatch)
    for largest, least in ((0, 0.0), (1 << 30, 1e6)):
        monkeypatch.setattr(compiled, "_LARGEST", largest)
        monkeypatch.setattr(compiled, "_LEAST", least)
        OpenVinoSession(graph, 1, lean=False, cached=True).run(feeds())
    assert len(seen) == 2 and not (tmp_path / "cache").exists()


def test_graphs_that_are_in_no_bundle_are_not_kept(cache: Path, tmp_path: Path, demo_bundle: BundleMaker) -> None:
    """Those that are made for one purpose and thrown away would fill a user's disk."""
    open_onnx("openvino", saved(tmp_path)).run(feeds())
    assert not cache.exists()
    bundle = demo_bundle("t2v", "fp32")
    encoder = get_engine("openvino").open(bundle, "text_encoder", "main", EngineOptions("openvino"))
    encoder.run({"input_ids": np.zeros((1, bundle.manifest.text_tokens), np.int64)})
    assert len(list(cache.glob("*.blob"))) == 1
