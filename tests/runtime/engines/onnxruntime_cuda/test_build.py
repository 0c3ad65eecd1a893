"""What ``reelquant build --engine onnxruntime-cuda`` writes, and that it computes what the bundle's own graphs do."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from reelquant.quant.graph.cuda_variant import cuda_variant
from reelquant.quant.graph.graph_files import load_graph, load_mapped, save_graphs
from reelquant.quant.lint.cuda_kernels import placed
from reelquant.quant.passes.fuse_attention import fuse_attention
from reelquant.quant.passes.to_16bit import to_16bit
from reelquant.runtime import Request, load_pipeline
from reelquant.runtime.bundle import Bundle, list_files, write_manifest
from reelquant.runtime.bundle.support import BASES
from reelquant.runtime.engines.onnxruntime_cuda.session import DeviceSession
from reelquant.runtime.engines.onnxruntime_cuda.variant import ENGINE
from reelquant.runtime.engines.options import BuildSpec, EngineOptions
from reelquant.runtime.engines.registry import get_engine, open_onnx
from reelquant.runtime.errors import BundleError, EngineError
from reelquant.runtime.progress import Progress
from reelquant.runtime.relative_l2 import relative_l2
from reelquant.runtime.tune.timing import step_feeds
from tests.command_line import run
from tests.conftest import BundleMaker, TinyBundleMaker
from tests.runtime.engines.onnxruntime_cuda.on_host import OnHost, cuda_on_host

PROMPT = "a red circle moving right on a black background"


def copied(bundle: Bundle, folder: Path) -> Bundle:
    return Bundle.open(shutil.copytree(bundle.path, folder))


def test_a_clip_through_fused_graphs_on_a_device(demo_bundle: BundleMaker, tmp_path: Path) -> None:
    bundle = demo_bundle("t2v", "fp32")
    request = Request(PROMPT, seed=3, steps=2, frames=17)
    wanted = load_pipeline(bundle.path, "onnxruntime").generate(request)
    with cuda_on_host() as engine:
        built = engine.build(copied(bundle, tmp_path / "built"), BuildSpec())
        (record,) = built.manifest.engines[ENGINE]["graphs"].values()
        operators = [node.op_type for node in load_graph(built.path / record["file"]).graph]
        assert operators.count("Attention") == record["fused"] == 6 and "Softmax" not in operators
        assert isinstance(engine.open(built, "transformer", "main", EngineOptions(ENGINE)), DeviceSession)
        for each in (built, bundle):  # one that was not built has its own graphs
            found = load_pipeline(each.path, ENGINE).generate(request)
            assert np.abs(found.frames.astype(int) - wanted.frames.astype(int)).max() <= (1 if each is built else 0)


def test_the_build_in_a_bundle(capfd: pytest.CaptureFixture[str], demo_bundle: BundleMaker, tmp_path: Path) -> None:
    bundle = copied(demo_bundle("t2v", "fp32"), tmp_path / "bundle")
    said = run(capfd, "build", bundle.path, "--engine", ENGINE, "--json")
    record = json.loads(said.out)
    assert "not opened here" in said.err and record["version"] == "1.31.1" and len(record["build_seconds"]) == 7
    built = Bundle.open(bundle.path)
    assert built.verify() == len(bundle.manifest.files) + 1 and built.digest == bundle.digest
    (file,) = built.manifest.files.keys() - bundle.manifest.files.keys()
    assert record["graphs"]["transformer/main"]["file"] == file
    inode = (built.path / file).stat().st_ino
    run(capfd, "build", bundle.path, "--engine", ENGINE)
    assert (built.path / file).stat().st_ino == inode  # nothing changed, nothing written
    (built.path / file).write_bytes((built.path / file).read_bytes()[:-1] + b"\0")
    with pytest.raises(BundleError, match="was changed after export"):
        OnHost().open_component(built, "transformer", EngineOptions(ENGINE))


def test_a_variant_of_another_graph_is_refused(demo_bundle: BundleMaker, tmp_path: Path) -> None:
    built = OnHost().build(copied(demo_bundle("t2v", "fp32"), tmp_path / "bundle"), BuildSpec())
    record = built.manifest.engines[ENGINE]
    for changed in ({"of": "00" * 32}, {"file": "../outside.onnx"}):
        graphs = {"transformer/main": {**record["graphs"]["transformer/main"], **changed}}
        write_manifest(built.path, replace(built.manifest, engines={ENGINE: {**record, "graphs": graphs}}))
        with pytest.raises(
            BundleError, match=r"made from another graph.*reelquant build BUNDLE --engine onnxruntime-cuda"
        ):
            OnHost().open(Bundle.open(built.path), "transformer", "main", EngineOptions(ENGINE))


@pytest.mark.parametrize(("task", "precision"), [("t2v", "fp32"), ("t2v", "int8"), ("t2v", "fp16")])
def test_fused_and_decomposed_attention_agree(
    demo_bundle: BundleMaker, tmp_path: Path, task: str, precision: str
) -> None:
    """On ONNX Runtime's CPU kernels, at the demo's own size."""
    bundle = demo_bundle(task, "fp32" if precision == "fp16" else precision)
    graph = bundle.graph("transformer", "main")
    if precision == "fp16":
        model = load_mapped(graph)
        to_16bit(model, "fp16")
        save_graphs(tmp_path / "half", {"main": model})
        graph = tmp_path / "half" / "main.onnx"
    feeds = step_feeds(bundle)
    found, wanted = OnHost().open_onnx(graph, EngineOptions(ENGINE)), open_onnx("onnxruntime", graph)
    fed = {name: feeds[name] for name in wanted.inputs}
    assert len(cuda_variant(graph).fused) == 6
    distance = relative_l2(found.run(fed)["velocity"], wanted.run(fed)["velocity"])
    assert distance <= (1e-3 if precision == "fp16" else 1e-6)  # fp16's own distance from fp32 is 5e-4


def test_bf16_is_for_the_gpu_alone(demo_bundle: BundleMaker, tmp_path: Path) -> None:
    """The CPU has no kernels for most of it, decomposed or not; CUDA has them of all of it, once Conv is that of opset 22 or later."""
    model = load_mapped(demo_bundle("t2v", "fp32").graph("transformer", "main"))
    to_16bit(model, "bf16")
    save_graphs(tmp_path / "half", {"main": model})
    graph = tmp_path / "half" / "main.onnx"
    made = cuda_variant(graph)
    assert len(made.fused) == 6 and made.lacking == made.on_cpu == ()
    with pytest.raises(BundleError, match=r"cannot load .*Could not find an implementation for Gemm"):
        OnHost().open_onnx(graph, EngineOptions(ENGINE))


def test_attention_with_qdq_inside_stays(
    demo_bundle: BundleMaker, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = load_graph(demo_bundle("t2v", "fp8").graph("transformer", "main"))
    before = len(model.graph)
    assert fuse_attention(model) == [] and len(model.graph) == before
    built = OnHost().build(copied(demo_bundle("t2v", "fp8"), tmp_path / "fp8"), BuildSpec(), Progress(False, says=True))
    assert built.manifest.engines[ENGINE]["graphs"] == {}
    assert "6 attentions have Q/DQ inside, and hold their scores in GPU memory" in capfd.readouterr().err


def test_what_cuda_lacks_is_refused_before_anything_is_written(tiny_bundle: TinyBundleMaker, tmp_path: Path) -> None:
    bundle = copied(tiny_bundle("t2v"), tmp_path / "bundle")
    graph = bundle.graph("transformer", "main")
    model = load_graph(graph)
    eye = ir.tensor(np.eye(2).astype(ml_dtypes.bfloat16))
    square = ir.val("square", ir.DataType.BFLOAT16, ir.Shape([2, 2]), const_value=eye)
    model.graph.register_initializer(square)
    node = ir.node("Det", [square])
    node.outputs[0].dtype = ir.DataType.BFLOAT16
    model.graph.append(node)
    ir.save(model, graph)
    write_manifest(bundle.path, replace(bundle.manifest, files=list_files(bundle.path)))
    bundle = Bundle.open(bundle.path)
    with pytest.raises(
        BundleError, match=r"transformer/main: ONNX Runtime 1\.31\.1 has no kernel.* of 1 Det of bfloat16; export"
    ):
        OnHost().build(bundle, BuildSpec())
    assert Bundle.open(bundle.path).verify() and not (bundle.path / "engines").exists()


def test_a_bf16_bundle_must_be_built(demo_bundle: BundleMaker, tmp_path: Path) -> None:
    """What CUDA has no bf16 kernels of is between casts then."""
    manifest = demo_bundle("t2v", "fp32").manifest
    parts = {name: replace(part, compute="bf16") for name, part in manifest.components.items()}
    reason = OnHost().refuses(replace(manifest, components=parts))
    assert reason is not None and reason.endswith("build it with: reelquant build BUNDLE --engine onnxruntime-cuda")
    assert OnHost().refuses(replace(manifest, components=parts, engines={ENGINE: {}})) is None
    assert (
        OnHost().refuses(replace(manifest, components={**manifest.components, "text_encoder": parts["text_encoder"]}))
        is None
    )
    OnHost().check_build(BuildSpec(), {"bf16": BASES["bf16"]})
    models = {name: load_mapped(demo_bundle("t2v", "fp32").graph("vae_decoder", name)) for name in ("first", "next")}
    for model in models.values():
        to_16bit(model, "bf16")
    save_graphs(tmp_path / "half", models)
    for name, model in models.items():
        assert any("Resize of bfloat16" in kind for kind in placed(model).lacking)
        made = cuda_variant(tmp_path / "half" / f"{name}.onnx")
        assert made.onnx is not None and made.lacking == made.on_cpu == ()


def test_without_a_gpu_it_is_said(tiny_bundle: TinyBundleMaker) -> None:
    bundle, engine = tiny_bundle("t2v"), get_engine(ENGINE)
    with pytest.raises(EngineError, match=r"does not start on the GPU: .*, or run on the CPU: --engine onnxruntime$"):
        engine.open(bundle, "transformer", "main", EngineOptions(ENGINE))
    with pytest.raises(EngineError, match="does not start on the GPU"):
        engine.open_onnx(bundle.graph("transformer", "main"), EngineOptions(ENGINE))
