"""A text encoder stored in fewer bits, through the road: smaller, said so in the manifest, and nearly the same text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reelquant.export.checkpoint import Checkpoint
from reelquant.export.trace_bundle import text_storage, trace_component
from reelquant.quant.quantize import quantize_bundle
from reelquant.runtime.bundle import Bundle, list_files, write_manifest
from reelquant.runtime.engines.options import BuildSpec, EngineOptions
from reelquant.runtime.engines.tensorrt.flavor import RTX
from reelquant.runtime.engines.tensorrt.stage import build_engines
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.relative_l2 import relative_l2
from reelquant.runtime.request import Request
from tests.conftest import CHECKPOINTS, BundleMaker

PROMPT = "a red circle moves right on a white background"


def with_text_weights(exact: Bundle, storage: str, folder: Path) -> Bundle:
    """The bundle that an export with ``--text-weights`` makes; what it would trace again as it is, is copied."""
    part = trace_component(Checkpoint.open(str(CHECKPOINTS / "t2v")), "text_encoder", folder, storage)
    exact.copy_files(folder, lambda name: not name.startswith("text_encoder/"))
    components = {**exact.manifest.components, "text_encoder": part}
    write_manifest(folder, replace(exact.manifest, components=components, files=list_files(folder)))
    return Bundle.open(folder)


@pytest.mark.parametrize(("storage", "share", "bound"), [("bf16", 0.55, 1e-2), ("int8", 0.35, 3e-2)])
def test_a_smaller_text_encoder(
    storage: str, share: float, bound: float, demo_bundle: BundleMaker, tmp_path: Path
) -> None:
    exact = demo_bundle("t2v", "fp32")
    bundle = with_text_weights(exact, storage, tmp_path / "bundle")
    assert (text_storage(exact.manifest), text_storage(bundle.manifest)) == ("fp32", storage)
    sizes = [each.manifest.files["text_encoder/weights.safetensors"].size for each in (bundle, exact)]
    assert sizes[0] < share * sizes[1]
    said = bundle.manifest.components["text_encoder"].passes["main"]["store_weights"]
    assert 1e-4 < said["relative_l2"] < bound
    embeds = {
        engine: Pipeline(bundle, EngineOptions(engine)).encode_prompt(PROMPT, guided=False)
        for engine in ("openvino", "onnxruntime")
    }
    wanted = Pipeline(exact, EngineOptions("onnxruntime")).encode_prompt(PROMPT, guided=False)
    assert relative_l2(embeds["openvino"], embeds["onnxruntime"]) < 1e-5
    assert 1e-4 < relative_l2(embeds["openvino"], wanted) < bound


def test_int8_text_beside_16_bit_stays_int8_in_the_engine(demo_bundle: BundleMaker, tmp_path: Path) -> None:
    exact = demo_bundle("t2v", "fp32")
    int8 = with_text_weights(exact, "int8", tmp_path / "int8")
    bundle = quantize_bundle(int8, None, None, tmp_path / "fp16", base="fp16")
    stored = bundle.manifest.components["text_encoder"].stats["main"]["weight_bytes_by_dtype"]
    assert stored["INT8"] > 10 * stored["BFLOAT16"]
    built = build_engines(bundle, RTX, BuildSpec(gpus=("sm89",), cache=tmp_path / "cache"))
    (record,) = (e for e in built.manifest.engines[RTX.engine]["engines"] if e["component"] == "text_encoder")
    assert record["evidence"]["weight_bytes"] < 1.1 * sum(stored.values())
    found, wanted = (
        Pipeline(each, EngineOptions("openvino")).encode_prompt(PROMPT, guided=False) for each in (bundle, exact)
    )
    assert relative_l2(found, wanted) < 1.5e-2  # bf16 alone costs 6e-3, INT8 alone 5e-3


def test_networks_are_given_up_after_use(demo_bundle: BundleMaker) -> None:
    """One in memory at a time gives the clip that all of them give."""
    bundle = demo_bundle("t2v", "fp32")
    kept, given_up = (Pipeline(bundle, EngineOptions("onnxruntime"), keep=keep) for keep in (True, False))
    request = Request(PROMPT, seed=1, steps=1)
    assert np.array_equal(kept.generate(request).frames, given_up.generate(request).frames)
    assert {"text_encoder", "transformer", "vae_decoder"} <= kept.loaded
    assert given_up.loaded == {"vae_decoder"}
