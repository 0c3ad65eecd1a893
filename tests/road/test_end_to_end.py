"""The road's proof: fp32 bundles against diffusers' fp32 pipelines, same noise, all steps."""

from __future__ import annotations

from functools import cache
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from demo.clips import Scene, render
from demo.fidelity import psnr
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.relative_l2 import relative_l2
from reelquant.runtime.request import Request
from tests.conftest import CHECKPOINTS, BundleMaker

STEPS = 50
SCENE = Scene("red", "circle", "right", "white")
LATENTS_TOLERANCE = 1e-3  # relative L2 of the final latents
FRAMES_FLOOR = 40.0  # dB


@cache
def given() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The initial noise [latent_frames, channels, h, w] and the first frame that both sides start from."""
    rng = np.random.default_rng(11)
    return rng.standard_normal((5, 16, 12, 12), dtype=np.float32), render(SCENE, rng)[0]


@cache
def reference(task: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Final latents [latent_frames, channels, h, w] and frames uint8 from diffusers."""
    noise, image = given()
    name = "CogVideoXImageToVideoPipeline" if task == "i2v" else "CogVideoXPipeline"
    pipeline = getattr(diffusers, name).from_pretrained(CHECKPOINTS / task, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    first_frame = {"image": Image.fromarray(image)} if task == "i2v" else {}
    latents = pipeline(
        prompt=SCENE.caption,
        height=96,
        width=96,
        num_frames=17,
        num_inference_steps=STEPS,
        latents=torch.from_numpy(noise)[None],
        generator=torch.Generator().manual_seed(5),
        max_sequence_length=24,
        output_type="latent",
        **first_frame,
    ).frames
    with torch.no_grad():
        frames = pipeline.video_processor.postprocess_video(pipeline.decode_latents(latents), output_type="np")[0]
    return latents[0].numpy(), np.asarray((frames * 255).round(), np.uint8)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_fp32_bundle_renders_what_diffusers_renders(task: str, engine: str, demo_bundle: BundleMaker) -> None:
    noise, image = given()
    # The posterior noise that the pipeline's generator draws when it encodes the image.
    image_noise = torch.randn((1, 16, 1, 12, 12), generator=torch.Generator().manual_seed(5))[:, :, 0].numpy()
    wanted_latents, wanted_frames = reference(task)

    pipeline = Pipeline(demo_bundle(task, "fp32"), EngineOptions(engine))
    request = Request(
        SCENE.caption, image if task == "i2v" else None, steps=STEPS, latents=noise, image_noise=image_noise, seed=0
    )
    latents = pipeline.sample(request)
    assert relative_l2(latents, wanted_latents) <= LATENTS_TOLERANCE
    assert psnr(pipeline.decode(latents), wanted_frames) >= FRAMES_FLOOR
