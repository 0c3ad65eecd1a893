"""The demo with LoRA: whole clips against diffusers with the same LoRA loaded, and what an export makes again for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from demo.fidelity import psnr
from reelquant.export.checkpoint import Checkpoint
from reelquant.export.road import ExportPlan, is_up_to_date
from reelquant.export.sampling import Sampling
from reelquant.export.trace_bundle import trace_bundle
from reelquant.export.weights import open_weights
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.relative_l2 import relative_l2
from reelquant.runtime.request import Request
from tests.conftest import CHECKPOINTS, BundleMaker
from tests.lora_files import random_pairs, write_lora
from tests.road.test_end_to_end import FRAMES_FLOOR, LATENTS_TOLERANCE, SCENE, given

T2V = CHECKPOINTS / "t2v"
STEPS, RANK, ALPHA, SCALE = 4, 4, 6.0, 0.7
SIZE = {"height": 96, "width": 96, "num_frames": 17}


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of every linear and of the patch embedding, alpha in the metadata."""
    shapes = {name: weight.shape for name, weight in open_weights(T2V / "transformer").items()}
    modules = [name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) > 1]
    config = {"r": RANK, "lora_alpha": ALPHA, "target_modules": modules}
    pairs = random_pairs(shapes, modules, RANK)
    folder = tmp_path_factory.mktemp("lora")
    write_lora(folder / "kohya.safetensors", pairs, "kohya", alpha=ALPHA)
    return write_lora(folder / "peft.safetensors", pairs, config=config)


def test_a_clip_is_diffusers_own_with_the_same_lora(lora: Path, demo_bundle: BundleMaker, tmp_path: Path) -> None:
    noise, _ = given()
    pipeline = diffusers.CogVideoXPipeline.from_pretrained(T2V, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    arguments: dict[str, Any] = {
        "prompt": SCENE.caption, "num_inference_steps": STEPS, "latents": torch.from_numpy(noise)[None],
        "max_sequence_length": 24, "output_type": "latent", **SIZE,
    }  # fmt: skip
    plain = pipeline(**arguments).frames[0].numpy()
    pipeline.load_lora_weights(lora.parent, weight_name=lora.name, adapter_name="some")
    pipeline.set_adapters(["some"], [SCALE])
    wanted = pipeline(**arguments).frames
    with torch.no_grad():
        shown = pipeline.video_processor.postprocess_video(pipeline.decode_latents(wanted), output_type="np")[0]

    checkpoint = Checkpoint.open(str(T2V), [f"{lora}:{SCALE}"])
    bundle = trace_bundle(checkpoint, tmp_path / "out", networks=("text_encoder", "transformer"))
    found = Pipeline(bundle, EngineOptions("onnxruntime")).sample(
        Request(SCENE.caption, seed=0, steps=STEPS, latents=noise)
    )
    assert relative_l2(found, wanted[0].numpy()) <= LATENTS_TOLERANCE
    assert relative_l2(found, plain) > 100 * LATENTS_TOLERANCE  # which the LoRA is to blame for
    frames = Pipeline(demo_bundle("t2v", "fp32"), EngineOptions("onnxruntime")).decode(found)
    assert psnr(frames, np.asarray((shown * 255).round(), np.uint8)) >= FRAMES_FLOOR

    # Kohya's form of the same is the same, to the bit: diffusers reads none for CogVideoX.
    twin = Checkpoint.open(str(T2V), [f"{lora.with_name('kohya.safetensors')}:{SCALE}"]).network("transformer").weights
    for name, weight in checkpoint.network("transformer").weights.items():
        np.testing.assert_array_equal(weight.read(), twin[name].read())
    assert bundle.manifest.source["loras"] == [checkpoint.loras[0].record]
    assert checkpoint.loras[0].record["file"] == "peft.safetensors" and checkpoint.loras[0].record["scale"] == SCALE


def test_what_was_traced_is_used_again_only_for_the_same(lora: Path, demo_bundle: BundleMaker) -> None:
    """An export's work folder, with everything that an export is told changed in turn."""
    plain = Bundle.open(demo_bundle("t2v", "fp32").path.parent / "work-t2v" / "fp32").manifest

    def up_to_date(manifest: Any, loras: tuple[str, ...] = (), **sampling: Any) -> bool:
        plan = ExportPlan(loras=loras, sampling=Sampling(**sampling))
        return is_up_to_date(manifest, Checkpoint.open(str(T2V), loras), plan)

    assert up_to_date(plain)
    older = replace(plain, source={key: value for key, value in plain.source.items() if key != "loras"})
    assert up_to_date(older)  # made before there was any LoRA
    assert up_to_date(replace(plain, source={**plain.source, "checkpoint": "by another name"}))
    one = (f"{lora}:0.7",)
    assert not up_to_date(plain, one)
    has_one = replace(plain, source=Checkpoint.open(str(T2V), one).source)
    assert up_to_date(has_one, one) and not up_to_date(has_one)
    for other in ((f"{lora}:0.8",), (str(lora),), one * 2, (f"{lora.with_name('kohya.safetensors')}:0.7",)):
        assert not up_to_date(has_one, other)
    for changed in ({"steps": 8}, {"timesteps": (999, 5)}, {"guidance": 1.0}, {"scheduler": "dpm"}):
        assert not up_to_date(plain, **changed)
    assert up_to_date(plain, steps=50, guidance=6.0, scheduler="ddim")  # as they are
