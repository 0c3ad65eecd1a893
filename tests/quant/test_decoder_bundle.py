"""A decoder that convolves in INT8: what is quantized, that it is what numpy says, and that it stays the decoder."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from demo.fidelity import psnr
from reelquant.quant import decoder_bundle
from reelquant.quant.decoder_bundle import DecoderTrial, largest_fed
from reelquant.quant.formats import INT8, INT8_REDUCED
from reelquant.quant.graph.convolutions import convolution_nodes
from reelquant.quant.graph.graph_files import WEIGHTS, load_graph, save_graphs
from reelquant.quant.graph.static_shapes import known_shape
from reelquant.quant.methods.primitives import dequantize, quantize, scale_from_absmax
from reelquant.quant.passes.quantize_convolutions import quantize_convolutions
from reelquant.runtime import load_pipeline
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.registry import open_onnx
from reelquant.runtime.errors import BadInput, BundleError
from tests.command_line import run
from tests.conftest import BundleMaker

Capture = pytest.CaptureFixture[str]
QUICK = ("--data", "demo", "--prompts", "2", "--steps", "4")


def convolution(filters: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> ir.Model:
    x = ir.val("x", ir.DataType.FLOAT, ["n", 4, 5, 8, 8])
    weight = ir.val("mid.conv1.conv.weight", const_value=ir.tensor(filters, name="mid.conv1.conv.weight"))
    node = ir.node("Conv", [x, weight], {"kernel_shape": [3, 3, 3], "pads": [0, 1, 1, 0, 1, 1]}, name="mid.conv1.conv")
    out = node.outputs[0]
    out.name, out.dtype, out.shape = "y", ir.DataType.FLOAT, ir.Shape(["n", 6, 3, 8, 8])
    graph = ir.Graph([x], [out], nodes=[node], initializers=[weight], opset_imports={"": 21}, name="g")
    return ir.Model(graph, ir_version=10)


def stored(bundle: Bundle, graph: str, name: str) -> float:
    value = load_graph(bundle.graph("vae_decoder", graph)).graph.initializers[name].const_value
    assert value is not None
    return float(value.numpy())


def multiplications(node: ir.Node) -> int:
    shapes = [known_shape(value, {"height": 12, "width": 12}) for value in (node.outputs[0], node.inputs[1])]
    assert shapes[0] is not None and shapes[1] is not None
    return prod(shapes[0]) * prod(shapes[1][1:])


def test_a_convolution_is_what_numpy_says(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    filters = (
        rng.standard_normal((6, 4, 3, 3, 3), dtype=np.float32)
        * np.geomspace(0.1, 9, 6, dtype=np.float32)[:, None, None, None, None]
    )
    x = rng.standard_normal((2, 4, 5, 8, 8), dtype=np.float32)
    model = convolution(filters)
    largest = float(np.abs(x).max())
    assert quantize_convolutions(model, {"mid.conv1.conv": largest}) == 1
    save_graphs(tmp_path / "low", {"g": model})
    scale = scale_from_absmax(np.float32(largest), INT8)
    steps = np.abs(filters).reshape(6, -1).max(axis=1) / np.float32(64)
    save_graphs(tmp_path / "high", {"g": convolution(dequantize(quantize(filters, steps, INT8_REDUCED), steps))})
    found = open_onnx("openvino", tmp_path / "low" / "g.onnx").run({"x": x})["y"]
    again = dequantize(quantize(x, scale, INT8), scale)
    wanted = open_onnx("openvino", tmp_path / "high" / "g.onnx").run({"x": again})["y"]
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 1e-4
    filters[3, 0, 0, 0, 0] = np.nan
    with pytest.raises(BundleError, match=r"cannot quantize mid.conv1.conv.weight: it has a value that is infinite or"):
        quantize_convolutions(convolution(filters), {"mid.conv1.conv": 1.0})


def test_what_is_worth_it(demo_bundle: BundleMaker) -> None:
    """Nearly all of the work; neither ends nor spatial norms."""
    bundle = demo_bundle("t2v", "fp32")
    first, then = (load_graph(bundle.graph("vae_decoder", name)) for name in ("first", "next"))
    names = [found.name for found in convolution_nodes(first)]
    assert names == [found.name for found in convolution_nodes(then)] and len(names) == 23
    assert all(name.endswith((".conv1.conv", ".conv2.conv")) or ".upsamplers." in name for name in names)
    work = {node.name: multiplications(node) for node in then.graph if node.op_type == "Conv"}
    assert sum(work[name] for name in names) > 0.9 * sum(work.values())


def test_latents_that_are_not_finite(demo_bundle: BundleMaker, tmp_path: Path) -> None:
    bundle = demo_bundle("t2v", "fp32")
    latents = np.full((3, 16, 6, 8), np.nan, np.float32)
    with pytest.raises(BundleError, match=r"mid_block.* of the decoder is fed values that are not finite"):
        largest_fed(bundle, [latents], tmp_path / "beside", "onnxruntime")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("task", "precision"), [("t2v", "int4-weight"), ("i2v", "fp32")])
def test_a_decoder_is_quantized(
    task: str, precision: str, demo_bundle: BundleMaker, tmp_path: Path, capfd: Capture
) -> None:
    source, out = demo_bundle(task, precision), tmp_path / "out"
    ran = run(capfd, "quantize-decoder", source.path, out, *QUICK, "--json")
    assert ran.code == 0, ran.err
    said = json.loads(ran.out)
    assert said["convolutions"] == 23 and said["psnr"] > 40 and said["limit"] == decoder_bundle.LEAST_PSNR
    assert said["trial"]["data"] == "demo" and len(said["trial"]["prompts_sha256"]) == 64
    bundle = Bundle.open(out)
    bundle.check_hashes()
    assert bundle.manifest.precision == precision
    assert bundle.component_digest("transformer") == source.component_digest("transformer")
    before, after = (each.manifest.components["vae_decoder"].stats["next"] for each in (source, bundle))
    assert after["weight_bytes"] < 0.4 * before["weight_bytes"] and after["weight_bytes_by_dtype"]["INT8"] > 0
    # One scale for both graphs of the stream: what the first hands on, the second takes.
    first, then = (
        {
            found.name: stored(bundle, graph, f"{found.activation}_int8_scale")
            for found in convolution_nodes(load_graph(source.graph("vae_decoder", graph)))
        }
        for graph in ("first", "next")
    )
    assert first == then and len(first) == 23 and min(first.values()) > 0
    assert (out / "vae_decoder" / WEIGHTS).stat().st_size < 0.5 * (source.path / "vae_decoder" / WEIGHTS).stat().st_size
    _, (unseen,) = DecoderTrial("demo", steps=4).requests(task)
    for engine in ("openvino", "onnxruntime"):
        low, high = (load_pipeline(path, engine) for path in (out, source.path))
        latents = high.sample(unseen)
        assert psnr(low.decode(latents), high.decode(latents)) > 35
    again = run(capfd, "quantize-decoder", out, tmp_path / "again", *QUICK)
    assert again.code == 2 and "is quantized already; start from the bundle it was made from" in again.err


def test_what_is_refused(
    demo_bundle: BundleMaker,
    rtx_bundle: BundleMaker,
    tmp_path: Path,
    capfd: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    high = run(capfd, "quantize-decoder", rtx_bundle("t2v", "fp16").path, tmp_path / "out", *QUICK)
    assert high.code == 2 and "computes in fp16; give a bundle whose base is fp32" in high.err
    few = run(capfd, "quantize-decoder", demo_bundle("i2v", "fp32").path, tmp_path / "out", "--data", "general")
    assert few.code == 2 and "has 0 prompts with an image, and 4 are for scales and 1 to compare" in few.err
    with pytest.raises(BadInput, match="has 32 prompts, and 40 are for scales and 1 to compare; add some, or take"):
        DecoderTrial("demo", prompts=40).requests("t2v")
    monkeypatch.setattr(decoder_bundle, "LEAST_PSNR", 99.0)
    far = run(capfd, "quantize-decoder", demo_bundle("t2v", "fp32").path, tmp_path / "out", *QUICK)
    assert far.code == 2 and "dB of fp32's, and 99 dB is the limit; keep this decoder in fp32" in far.err
    assert not list(tmp_path.iterdir())
