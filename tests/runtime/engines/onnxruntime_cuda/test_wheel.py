"""The real package onnxruntime-gpu in front of the one for CPUs, without a GPU: what it registers, where it puts nodes, what it says.

With libraries that stand in for CUDA's (stand_in.py) its provider starts, and ONNX Runtime itself decides where each node computes and
what is copied. The package has a quarter of a gigabyte.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir
import pytest

from reelquant.quant.graph.graph_files import load_mapped, save_graphs
from reelquant.quant.passes.to_16bit import to_16bit
from reelquant.runtime.bundle import Bundle, list_files, write_manifest
from reelquant.runtime.engines.onnxruntime_cuda.variant import ENGINE
from reelquant.runtime.engines.options import BuildSpec
from tests.conftest import BUILD, ROOT, BundleMaker, TinyBundleMaker
from tests.runtime.engines.onnxruntime_cuda.on_host import OnHost
from tests.runtime.engines.onnxruntime_cuda.record_kernels import FILE, record
from tests.runtime.engines.onnxruntime_cuda.stand_in import make_libraries
from tests.runtime.engines.onnxruntime_cuda.test_build import copied
from tests.runtime.engines.onnxruntime_cuda.test_session import STREAM

pytestmark = pytest.mark.slow
HALVES = ("fp16", "bf16")
_START = """
import sys
sys.path.insert(0, sys.argv[1])
import onnxruntime
from pathlib import Path
from reelquant.runtime.engines.onnxruntime_cuda.starts import tried
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.registry import get_engine
print(onnxruntime.__version__, tried(onnxruntime, 0), file=sys.stderr)
engine = get_engine("onnxruntime-cuda")
assert engine.installed()
print(engine.report(), file=sys.stderr)
engine.open_onnx(Path(sys.argv[2]), EngineOptions("onnxruntime-cuda"))
"""
_DEVICE = """
import ctypes, json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import numpy as np
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.registry import get_engine
engine, bundle = get_engine("onnxruntime-cuda"), Bundle.open(sys.argv[2])
report, options = engine.report(), EngineOptions("onnxruntime-cuda")
copied = ctypes.CDLL("libcudart.so.13").stand_in_copied
copied.restype = ctypes.c_long

def counted(run):
    before = copied(1), copied(2)
    result = run()
    return result, [copied(1) - before[0], copied(2) - before[1]]

encoder = engine.open(bundle, "text_encoder", "main", options)
ids = np.zeros((2, bundle.manifest.text_tokens), np.int64)
bound, put = counted(lambda: encoder.put({"input_ids": ids}))
_, again = counted(lambda: encoder.put({"input_ids": ids}))
encoder.run(bound)
embeds, run = counted(lambda: encoder.run(bound))
stream, is_cache = engine.open_onnx(Path(sys.argv[3]), options, lean=True), "next_cache.in".__eq__
fed = {"x": np.ones((3, 4096), np.float32), "scale": np.ones(4096, np.float32)}
fed |= stream.put({"scale": fed["scale"]})
_, kept = stream.run_keeping({**fed, "cache.in": np.zeros((1, 4096), np.float32)}, is_cache)
value = kept["next_cache.in"]
before = value.value.data_ptr()
(results, kept), chunk = counted(lambda: stream.run_keeping({**fed, "cache.in": value}, is_cache, kept))
print(json.dumps({
    "report": [report.usable, report.devices],
    "constants": [ids.nbytes, put, again],
    "run": [embeds["embeds"].nbytes, run],
    "cache": [value.value.device_name(), list(value.shape), kept["next_cache.in"].value.data_ptr() == before],
    "chunk": [fed["x"].nbytes, results["y"].nbytes, chunk],
}))
"""
_PLACE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import onnxruntime
from reelquant.runtime.engines.onnxruntime_cuda.starts import providers
for graph, folder in (line.split("\\t") for line in sys.stdin.read().splitlines()):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    data = open(graph, "rb").read()
    session = onnxruntime.InferenceSession(data, options, providers=providers(0), enable_fallback=0)
    found = {}
    for part in session.get_provider_graph_assignment_info():
        for node in part.get_nodes():
            counted = found.setdefault(part.ep_name.removesuffix("ExecutionProvider"), {})
            counted[node.op_type] = counted.get(node.op_type, 0) + 1
    print(json.dumps([graph, found]))
"""
# What makes shapes, and nothing that multiplies matrices, normalizes or resizes.
_MAKES_SHAPES = {"Add", "Cast", "Concat", "Div", "Gather", "Mul", "Range", "Reshape", "Shape", "Slice", "Squeeze", "Sub", "Unsqueeze"}  # fmt: skip


@pytest.fixture(scope="module")
def wheel() -> Path:
    """The package of the version that is installed for CPUs, unpacked, and kept for later runs."""
    folder = BUILD / "onnxruntime-gpu" / version("onnxruntime")
    if not (folder / "onnxruntime").exists():
        folder.mkdir(parents=True, exist_ok=True)
        wanted = f"onnxruntime-gpu=={version('onnxruntime')}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder), wanted]
        subprocess.run(command, check=True)
        (file,) = folder.glob("*.whl")
        with zipfile.ZipFile(file) as archive:
            archive.extractall(folder)
        file.unlink()
    return folder


@pytest.fixture(scope="module")
def libraries(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stand-in")
    make_libraries(wheel / "onnxruntime" / "capi", folder)
    return folder


def python(
    code: str, *arguments: object, libraries: Path | None = None, given: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run ``code``, whose first argument is the wheel's folder."""
    environment = {**os.environ, **({"LD_LIBRARY_PATH": str(libraries)} if libraries else {})}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, input=given, env=environment, cwd=ROOT)


def test_the_list_of_kernels_is_the_packages(wheel: Path) -> None:
    assert record(wheel) == FILE.read_text(encoding="utf-8")


def test_without_cuda_nothing_opens_and_stdout_stays_empty(wheel: Path, demo_bundle: BundleMaker) -> None:
    graph = demo_bundle("t2v", "fp32").graph("transformer", "main")
    ran = python(_START, wheel, graph)
    assert ran.returncode == 1 and ran.stdout == ""
    assert f"{version('onnxruntime')} cannot load libcublasLt.so.13: " in ran.stderr  # by a session that was tried
    assert "EngineError: ONNX Runtime" in ran.stderr and "does not start on the GPU: no NVIDIA driver" in ran.stderr
    assert "usable=False" in ran.stderr and "CUDA does not start: no NVIDIA driver" in ran.stderr


def test_values_stay_on_the_device(wheel: Path, libraries: Path, tiny_bundle: TinyBundleMaker, tmp_path: Path) -> None:
    """Kernels compute nothing here; which bytes go where, ONNX Runtime decides as it does on a GPU. (Of cuDNN nothing is there: no
    convolutions.)
    """
    ir.save(ir.from_onnx_text(STREAM.replace(" 2]", " 4096]").replace("[2]", "[4096]")), tmp_path / "stream.onnx")
    ran = python(_DEVICE, wheel, tiny_bundle("t2v").path, tmp_path / "stream.onnx", libraries=libraries)
    assert ran.returncode == 0, ran.stderr
    found, few = json.loads(ran.stdout), 4096  # bytes of shapes that go there and back besides
    assert found["report"] == [True, "stand-in"]
    constants, put, again = found["constants"]
    assert put == [constants, 0] and again == [0, 0]
    embeds, (up, down) = found["run"]
    assert embeds <= down < embeds + few and up < few
    assert found["cache"] == ["cuda", [1, 4096], True]
    fed, results, (up, down) = found["chunk"]
    assert fed <= up < fed + few and results <= down < results + few  # and the cache of 16 kB neither way


@pytest.mark.parametrize("precision", ["fp32", "int8", "fp8", "fp16", "bf16"])
def test_only_shapes_are_computed_on_the_cpu(
    wheel: Path, libraries: Path, demo_bundle: BundleMaker, tmp_path: Path, precision: str
) -> None:
    """ONNX Runtime's own placement of every graph that the engine opens is what our list of kernels foretells."""
    bundle = copied(demo_bundle("t2v", "fp32" if precision in HALVES else precision), tmp_path / "bundle")
    built = OnHost().build(in_16bit(bundle, precision) if precision in HALVES else bundle, BuildSpec())
    record = built.manifest.engines[ENGINE]
    assert record["on_cpu"] == {}
    graphs = []
    for component, name in built.manifest.graphs():
        own, made = built.graph(component, name), record["graphs"].get(f"{component}/{name}")
        graphs.append(f"{built.path / made['file'] if made else own}\t{own.parent}")
    ran = python(_PLACE, wheel, libraries=libraries, given="\n".join(graphs))
    assert ran.returncode == 0, ran.stderr
    placed = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(placed) == len(graphs)
    for graph, found in placed:
        assert found.keys() <= {"CPU", "CUDA"} and found.get("CPU", {}).keys() <= _MAKES_SHAPES, (graph, found)


def in_16bit(bundle: Bundle, precision: str) -> Bundle:
    """``bundle`` with all its networks in fp16 or bf16, in place; the text encoder is in bf16."""
    components = dict(bundle.manifest.components)
    for component, part in bundle.manifest.components.items():
        chosen = "bf16" if component == "text_encoder" else precision
        models = {name: load_mapped(bundle.graph(component, name)) for name in part.graphs}
        for model in models.values():
            to_16bit(model, chosen)
        save_graphs(bundle.path / "half" / component, models)
        for file in (bundle.path / "half" / component).iterdir():
            file.replace(bundle.path / component / file.name)
        (bundle.path / "half" / component).rmdir()
        components[component] = replace(part, compute=chosen)
    (bundle.path / "half").rmdir()
    write_manifest(bundle.path, replace(bundle.manifest, components=components, files=list_files(bundle.path)))
    return Bundle.open(bundle.path)
