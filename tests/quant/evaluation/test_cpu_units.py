"""INT8 on CPUs without VNNI, whose INT8 kernels add two products in 16 bits and saturate.

Held on any x86 CPU: OpenVINO obeys DNNL_MAX_CPU_ISA, which takes units away. oneDNN reads that once, so what runs under it
is a process of its own.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from reelquant.quant.formats import INT8, INT8_REDUCED, Format, PerChannel
from reelquant.quant.graph.graph_files import save_graphs
from reelquant.quant.graph.linears import linear_nodes
from reelquant.quant.passes.qdq import QdqInserter
from reelquant.runtime.engines import onnxruntime as onnxruntime_engine
from reelquant.runtime.engines.registry import open_onnx
from reelquant.runtime.machine.cpu_units import has_int8_units
from tests.conftest import ROOT, BundleMaker

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the caps are of x86")
Array = NDArray[Any]
WITHOUT_VNNI = (
    "AVX512_CORE",
    "AVX2",
)  # the first is Intel's first AVX-512; the second a great many servers and laptops
CAPS = ("", *WITHOUT_VNNI)  # none: whatever this machine has
ROWS, INNER, COLUMNS = 32, 64, 48
FORMATS = {"int8": INT8, "reduced": INT8_REDUCED}

# Runs graphs as users do; "forced" takes away what keeps OpenVINO from its saturating kernels.
_RUN = """
import json, sys
import numpy as np
from pathlib import Path
from reelquant.runtime.engines.openvino import kernels
from reelquant.runtime.engines.registry import open_onnx
folder, out, names, forced = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
if forced:
    kernels.overflows = lambda model: False
x = np.load(folder / "x.npy")
found, taken = {}, {}
for name in names:
    plan = open_onnx("openvino", folder / name / "g.onnx")
    found[name] = plan.run({"x": x if name.startswith("linear") else x.reshape(1, 16, -1, 8, 4)[:, :, :4]})["y"]
    (compiled,) = plan._compiled.values()
    operators = compiled.get_runtime_model().get_ordered_ops()
    facts = [operator.get_rt_info() for operator in operators]
    kinds = ("FullyConnected", "Convolution", "MatMul")
    taken[name] = [str(f["primitiveType"].astype(str)) for f in facts if f["layerType"].astype(str) in kinds]
np.savez(out, **found)
print(json.dumps({"saturates": kernels.saturates(), "kernels": taken}))
"""
# Judges the demo's INT8 bundle on OpenVINO.
_GATE = """
import json, sys
from pathlib import Path
from reelquant.quant.evaluation.gate import gate
from reelquant.quant.evaluation.teacher import Trial
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.openvino import kernels
bundle, reference = (Bundle.open(Path(path)) for path in sys.argv[1:3])
steps = Trial("demo", prompts=1, steps=1).record(reference)
if json.loads(sys.argv[3]):
    kernels.overflows = lambda model: False
print(json.dumps(gate(bundle, reference, steps, "openvino").as_json()))
"""


def under(cap: str, code: str, *arguments: object) -> Any:
    """What ``code`` prints last, JSON, in a process whose oneDNN takes no units beyond ``cap``."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DNNL_MAX_CPU_ISA": cap}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def linear(weight: Array, scale: float, format: Format) -> ir.Model:
    """x [ROWS, INNER] @ weight, both in 8 bit."""
    x, y = ir.val("x", ir.DataType.FLOAT, ["rows", INNER]), ir.val("y", ir.DataType.FLOAT, ["rows", COLUMNS])
    stored = ir.val("layer.weight", const_value=ir.tensor(weight, name="layer.weight"))
    node = ir.node("MatMul", [x, stored], outputs=[y], name="layer")
    model = ir.Model(ir.Graph([x], [y], nodes=[node], initializers=[stored], opset_imports={"": 23}), ir_version=10)
    inserter = QdqInserter(model.graph, "fp32")
    (found,) = linear_nodes(model)
    inserter.activation(node, 0, "x", np.asarray(scale, np.float32), INT8)
    inserter.weight(found, format, PerChannel(1))
    inserter.remove_unused_weights()
    return model


def convolution(filters: Array, scale: float, format: Format) -> ir.Model:
    x = ir.val("x", ir.DataType.FLOAT, [1, 16, 4, 8, 4])
    y = ir.val("y", ir.DataType.FLOAT, [1, 8, 2, 6, 2])
    stored = ir.val("layer.weight", const_value=ir.tensor(filters, name="layer.weight"))
    node = ir.node("Conv", [x, stored], {"kernel_shape": [3, 3, 3]}, outputs=[y], name="layer")
    model = ir.Model(ir.Graph([x], [y], nodes=[node], initializers=[stored], opset_imports={"": 23}), ir_version=10)
    inserter = QdqInserter(model.graph, "fp32")
    inserter.activation(node, 0, "x", np.asarray(scale, np.float32), INT8)
    inserter.filters(node, "layer.weight", format)
    inserter.remove_unused_weights()
    return model


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Products that use the whole range, as ``KIND-FORMAT``; every product of ``x`` and a column is positive."""
    folder = tmp_path_factory.mktemp("graphs")
    rng = np.random.default_rng(0)
    x = rng.choice(np.array([64, 100, 127], np.float32), (ROWS, INNER))
    weight = rng.choice(np.array([0.5, 1], np.float32), (INNER, COLUMNS))
    filters = rng.choice(np.array([0.5, 1], np.float32), (8, 16, 3, 3, 3))
    np.save(folder / "x.npy", x)
    np.save(folder / "product.npy", x @ weight)
    for name, format in FORMATS.items():
        save_graphs(folder / f"linear-{name}", {"g": linear(weight, 1.0, format)})
        save_graphs(folder / f"convolution-{name}", {"g": convolution(filters, 1.0, format)})
    return folder


@pytest.fixture(scope="module")
def ran(graphs: Path) -> Any:
    """``ran(cap, forced)``: results by graph, and what was said of the kernels."""

    @cache
    def run(cap: str, forced: bool) -> tuple[dict[str, Array], dict[str, Any]]:
        out = graphs / f"{cap}-{forced}.npz"
        names = [path.name for path in sorted(graphs.iterdir()) if path.is_dir()]
        said = under(cap, _RUN, graphs, out, json.dumps(names), json.dumps(forced))
        with np.load(out) as found:
            return dict(found), said

    return run


def errors(found: dict[str, Array], graphs: Path) -> dict[str, float]:
    """Relative L2 to the same graph on ONNX Runtime, which computes it in float here."""
    x, lost = np.load(graphs / "x.npy"), {}
    for name, value in found.items():
        fed = x if name.startswith("linear") else np.ascontiguousarray(x.reshape(1, 16, -1, 8, 4)[:, :, :4])
        exact = open_onnx("onnxruntime", graphs / name / "g.onnx").run({"x": fed})["y"]
        lost[name] = float(np.linalg.norm(value - exact) / np.linalg.norm(exact))
    return lost


def in_int8(said: dict[str, Any]) -> set[str]:
    """The graphs whose one product is computed in an INT8 kernel: its name ends in what it reads (``brgemm_avx2_i8``)."""
    assert all(len(kernels) == 1 for kernels in said["kernels"].values())
    return {name for name, (kernel,) in said["kernels"].items() if kernel.lower().endswith("_i8")}


@pytest.mark.parametrize("cap", CAPS)
def test_int8_is_exact_with_whatever_units(cap: str, graphs: Path, ran: Any) -> None:
    found, said = ran(cap, False)
    lost = errors(found, graphs)
    assert len(lost) == 4 and max(lost.values()) < 1e-5, lost
    if cap:
        assert said["saturates"]


@pytest.mark.parametrize("cap", WITHOUT_VNNI)
def test_without_the_mend_it_saturates_and_reduced_weights_do_not(cap: str, graphs: Path, ran: Any) -> None:
    found, said = ran(cap, True)
    lost = errors(found, graphs)
    assert lost["linear-int8"] > 0.1 and lost["convolution-int8"] > 0.1
    assert lost["linear-reduced"] < 1e-5 and lost["convolution-reduced"] < 1e-5
    assert in_int8(said) == {f"{kind}-{format}" for kind in ("linear", "convolution") for format in FORMATS}


@pytest.mark.parametrize("cap", WITHOUT_VNNI)
def test_only_what_fits_is_multiplied_in_int8_there(cap: str, ran: Any) -> None:
    _, said = ran(cap, False)
    assert in_int8(said) == {"linear-reduced", "convolution-reduced"}


def test_openvino_is_asked_and_not_guessed(ran: Any) -> None:
    assert ran("", False)[1]["saturates"] != has_int8_units()


def test_the_gate_finds_an_engine_that_saturates(demo_bundle: BundleMaker) -> None:
    bundle, reference = demo_bundle("t2v", "int8"), demo_bundle("t2v", "fp32")
    good, bad = (under("AVX2", _GATE, bundle.path, reference.path, json.dumps(forced)) for forced in (False, True))
    assert good["faults"] == [] and good["engine"] == "openvino" and good["reference_engine"] == "onnxruntime"
    assert 0 < good["engine_rel_l2"] < good["limits"]["engine"] < bad["engine_rel_l2"]
    first = bad["faults"][0]
    assert first["where"].startswith("transformer_blocks.0.attn1.to_")
    assert "openvino computes something else than the graph says: its output differs by 0.0" in first["what"]
    # It is the finding of that comparison alone: against the fp32 reference such an engine stays within every limit.
    assert all("something else than the graph says" in fault["what"] for fault in bad["faults"])
    assert bad["rel_l2"] > 1.2 * good["rel_l2"]


@pytest.mark.parametrize("units", [True, False])
def test_onnxruntime_computes_the_graph_with_and_without_units(
    units: bool, graphs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU without VNNI its U8S8 kernels would saturate as OpenVINO's do, so they are taken for weights that fit alone."""
    monkeypatch.setattr(onnxruntime_engine, "has_int8_units", lambda: units)
    entries = {name: onnxruntime_engine._int8_entries(graphs / f"linear-{name}" / "g.onnx") for name in FORMATS}
    fast, exact = {"session.qdqisint8allowed": "0"}, {"session.disable_quant_qdq": "1"}
    assert entries == {"int8": fast if units else exact, "reduced": fast}
    x, product = (np.load(graphs / f"{name}.npy") for name in ("x", "product"))
    for name in FORMATS:
        if units and name == "int8" and not has_int8_units():
            continue  # it would saturate: that is why
        found = open_onnx("onnxruntime", graphs / f"linear-{name}" / "g.onnx").run({"x": x})["y"]
        np.testing.assert_allclose(found, product, rtol=0.01)
