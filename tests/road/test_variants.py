"""Every public variant, with all its own switches, against its diffusers fp32 pipeline: reduced width, two steps."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.memory import measured
from benchmarks.random_checkpoint import write_checkpoint
from benchmarks.variants import VARIANTS
from demo.fidelity import psnr
from reelquant.export.trace_bundle import trace_bundle
from reelquant.runtime.bundle import Bundle, list_files, write_manifest
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.media.images import from_model
from reelquant.runtime.models.cogvideox.vae import VaeDecoder, VaeEncoder
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.relative_l2 import relative_l2
from reelquant.runtime.request import Request
from reelquant.runtime.sizes import Size
from tests.conftest import CPU_ENGINES
from tests.road.against_diffusers import PROMPT, STEPS, TOLERANCE, Case, difference

# The trained size and another, wherever the variant allows one; learned positions hold for 49 frames alone.
CASES = [
    Case("cogvideox-2b", 49),
    Case("cogvideox-2b", 9, 48, 80),
    Case("cogvideox-5b", 9),
    Case("cogvideox-5b", 17, 48, 80),
    Case("cogvideox-5b-i2v", 49),
    Case("cogvideox-5b-i2v", 9),
    Case("cogvideox1.5-5b", 17),
    Case("cogvideox1.5-5b", 33, 48, 80),
    Case("cogvideox1.5-5b-i2v", 17),
]
SHARED = "cogvideox-5b"
VAE = ("vae_encoder", "vae_decoder")
VAE_WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``made("cogvideox-2b")``: a reduced random checkpoint and its fp32 bundle.

    The VAE takes most of the time to trace, and is one network in all checkpoints (test_checkpoints_have_one_vae): their
    bundles share what was traced of the first.
    """
    folder = tmp_path_factory.mktemp("variants")

    @cache
    def make(name: str) -> tuple[Path, Bundle]:
        write_checkpoint(folder / name, VARIANTS[name].reduced())
        out = folder / f"{name}-fp32"
        if name == SHARED:
            return folder / name, trace_bundle(str(folder / name), out)
        checkpoint, shared = make(SHARED)
        # Of CogVideoX-2b it is stored in float16, which holds other values; the demo's checkpoints are read in float16.
        shutil.copy(checkpoint / VAE_WEIGHTS, folder / name / VAE_WEIGHTS)
        traced = trace_bundle(str(folder / name), out, networks=("text_encoder", "transformer"))
        shared.copy_files(out, lambda file: file.startswith(VAE))
        parts = {part: shared.manifest.components[part] for part in VAE}
        manifest = replace(traced.manifest, components={**traced.manifest.components, **parts}, files=list_files(out))
        write_manifest(out, manifest)
        return folder / name, Bundle.open(out)

    return make


def test_checkpoints_have_one_vae(made: Any) -> None:
    """What differs is no part of a graph: the runtime scales latents, by what each manifest says."""
    outside = {"scaling_factor": 0, "invert_scale_latents": 0}
    (one, *others) = (
        {**json.loads((made(name)[0] / "vae" / "config.json").read_text()), **outside} for name in VARIANTS
    )
    (weights, *more) = ((made(name)[0] / VAE_WEIGHTS).read_bytes() for name in VARIANTS)
    assert len(others) == 4 and all(other == one for other in others) and all(other == weights for other in more)


VIDEO_CASES = [Case("cogvideox-2b", 9, 48, 80), Case("cogvideox-5b", 17)]


@pytest.mark.parametrize("case", VIDEO_CASES, ids=lambda case: case.variant)
def test_video_to_video_is_diffusers(case: Case, made: Any) -> None:
    """Half of four steps, from a clip larger than asked for, so that it is resized and cut."""
    checkpoint, bundle = made(case.variant)
    clip = np.random.default_rng(4).integers(0, 256, (case.frames, 2 * case.height, 2 * case.width, 3), np.uint8)
    text = diffusers.CogVideoXPipeline.from_pretrained(checkpoint, dtype=torch.float32)
    pipeline = diffusers.CogVideoXVideoToVideoPipeline(**text.components)
    pipeline.set_progress_bar_config(disable=True)
    wanted = (
        pipeline(
            prompt=PROMPT,
            video=[Image.fromarray(frame) for frame in clip],
            height=case.height,
            width=case.width,
            num_inference_steps=2 * STEPS,
            strength=0.5,
            generator=torch.Generator().manual_seed(5),
            output_type="latent",
        )
        .frames[0]
        .numpy()
    )

    frames, height, width = (case.frames - 1) // 4 + 1, case.height // 8, case.width // 8
    generator = torch.Generator().manual_seed(5)
    posterior = torch.randn((1, 16, frames, height, width), generator=generator)[0].transpose(0, 1).numpy()
    noise, *steps = (torch.randn((1, frames, 16, height, width), generator=generator)[0].numpy() for _ in range(3))
    request = Request(
        PROMPT, video=clip, strength=0.5, steps=2 * STEPS, frames=case.frames, height=case.height, width=case.width,
        seed=0, latents=noise, image_noise=np.ascontiguousarray(posterior), step_noise=tuple(steps),
    )  # fmt: skip
    ours = Pipeline(bundle, EngineOptions("onnxruntime"))
    assert relative_l2(ours.sample(request), wanted) <= TOLERANCE


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_variant_is_its_diffusers_pipeline(case: Case, made: Any) -> None:
    checkpoint, bundle = made(case.variant)
    assert difference(case, checkpoint, bundle) <= TOLERANCE


@pytest.mark.parametrize("size", [(96, 160), (112, 144), (48, 208)])
def test_tiled_decode_is_diffusers_tiled_decode(size: tuple[int, int], made: Any) -> None:
    """Frames of one tile and a bit, of two and a bit, and of one row of tiles."""
    checkpoint, bundle = made("cogvideox-2b")
    vae = diffusers.AutoencoderKLCogVideoX.from_pretrained(checkpoint / "vae", torch_dtype=torch.float32)
    vae.enable_tiling()
    latents = np.random.default_rng(1).standard_normal((5, 16, size[0] // 8, size[1] // 8), dtype=np.float32)
    with torch.no_grad():
        z = torch.from_numpy(latents).permute(1, 0, 2, 3)[None] / vae.config.scaling_factor
        wanted = vae.decode(z).sample.numpy()
    steps: list[None] = []
    decoder = VaeDecoder(bundle, EngineOptions("onnxruntime"), tiled=True)
    chunks = list(decoder.decode(latents, lambda: steps.append(None)))
    assert [chunk.shape[2] for chunk in chunks] == [9, 8] and len(steps) == decoder.chunks(latents)
    found = np.concatenate(chunks, axis=2)
    assert found.shape == wanted.shape
    assert psnr(from_model(found), from_model(wanted)) >= 40
    whole = np.concatenate(list(VaeDecoder(bundle, EngineOptions("onnxruntime")).decode(latents)), axis=2)
    assert relative_l2(found, wanted) <= 1e-4 < relative_l2(whole, wanted)


@pytest.mark.parametrize("frames", [1, 17])
@pytest.mark.parametrize("size", [(96, 160), (112, 144)])
def test_tiled_encode_is_diffusers_tiled_encode(frames: int, size: tuple[int, int], made: Any) -> None:
    checkpoint, bundle = made("cogvideox-2b")
    vae = diffusers.AutoencoderKLCogVideoX.from_pretrained(checkpoint / "vae", torch_dtype=torch.float32)
    vae.enable_tiling()
    clip = np.tanh(np.random.default_rng(2).standard_normal((1, 3, frames, *size), dtype=np.float32))
    with torch.no_grad():
        mean = vae.encode(torch.from_numpy(clip)).latent_dist.mode()[0].permute(1, 0, 2, 3).numpy()
    tiled, whole = (VaeEncoder(bundle, EngineOptions("onnxruntime"), tiled=tiled) for tiled in (True, False))
    found, other = (encoder.encode_image(clip) if frames == 1 else encoder.encode(clip) for encoder in (tiled, whole))
    wanted = mean * vae.config.scaling_factor
    assert relative_l2(found, wanted) <= 1e-4 < relative_l2(other, wanted)


@pytest.mark.parametrize(
    "size", [Size(25, 240, 360), pytest.param(Size(25, 480, 720), marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize("engine", CPU_ENGINES)
def test_later_chunks_take_no_more_memory_than_the_first(engine: str, size: Size, made: Any) -> None:
    peaks = measured(made("cogvideox-2b")[1].path, "vae_decoder", engine, size)
    assert len(peaks) == 3 and max(peaks) <= 1.05 * peaks[0], peaks
