"""The VAE as a stream against diffusers' whole-clip encode and decode."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.onnxruntime import OnnxRuntime
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.session import Session
from reelquant.runtime.models.cogvideox import vae as vae_streams
from reelquant.runtime.models.cogvideox.vae import VaeDecoder, VaeEncoder
from reelquant.runtime.relative_l2 import relative_l2
from tests.conftest import CHECKPOINTS, CPU_ENGINES, BundleMaker

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def vae() -> diffusers.AutoencoderKLCogVideoX:
    return diffusers.AutoencoderKLCogVideoX.from_pretrained(CHECKPOINTS / "t2v" / "vae", torch_dtype=torch.float32)


@pytest.mark.parametrize("engine", CPU_ENGINES)
@pytest.mark.parametrize(("frames", "height", "width"), [(9, 32, 48), (17, 48, 32), (25, 32, 32)])
def test_streamed_decode_and_encode_are_the_whole_clips(
    engine: str,
    frames: int,
    height: int,
    width: int,
    vae: diffusers.AutoencoderKLCogVideoX,
    demo_bundle: BundleMaker,
) -> None:
    bundle = demo_bundle("t2v", "fp32")
    rng = np.random.default_rng(frames)
    latents = rng.standard_normal(((frames - 1) // 4 + 1, 16, height // 8, width // 8), dtype=np.float32)
    chunks = list(VaeDecoder(bundle, EngineOptions(engine)).decode(latents))
    assert [chunk.shape[2] for chunk in chunks] == [9] + [8] * ((frames - 9) // 8)
    with torch.no_grad():
        z = torch.from_numpy(latents).permute(1, 0, 2, 3)[None] / vae.config.scaling_factor
        wanted = vae.decode(z).sample.numpy()
        clip = torch.from_numpy(np.tanh(rng.standard_normal((1, 3, frames, height, width), dtype=np.float32)))
        mean = vae.encode(clip).latent_dist.mode()[0].permute(1, 0, 2, 3).numpy() * vae.config.scaling_factor
    assert relative_l2(np.concatenate(chunks, axis=2), wanted) <= TOLERANCE
    assert relative_l2(VaeEncoder(bundle, EngineOptions(engine)).encode(clip.numpy()), mean) <= TOLERANCE


def test_an_image_is_a_stream_of_one_frame(vae: diffusers.AutoencoderKLCogVideoX, demo_bundle: BundleMaker) -> None:
    image = np.tanh(np.random.default_rng(0).standard_normal((1, 3, 1, 48, 32), dtype=np.float32))
    noise = torch.randn((1, 16, 1, 6, 4), generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        posterior = vae.encode(torch.from_numpy(image)).latent_dist
        wanted = posterior.sample(torch.Generator().manual_seed(9))[0].permute(1, 0, 2, 3).numpy()
    found = VaeEncoder(demo_bundle("t2v", "fp32"), EngineOptions("onnxruntime")).encode_image(
        image, noise[:, :, 0].numpy()
    )
    assert relative_l2(found, wanted * vae.config.scaling_factor) <= TOLERANCE


def test_an_even_number_of_latent_frames_is_refused(demo_bundle: BundleMaker) -> None:
    with pytest.raises(ValueError, match="odd"):
        list(
            VaeDecoder(demo_bundle("t2v", "fp32"), EngineOptions("onnxruntime")).decode(
                np.zeros((4, 16, 4, 4), np.float32)
            )
        )


@pytest.mark.parametrize("quick", [True, False])
def test_an_engine_that_is_slow_to_load_loads_each_graph_once_for_all_tiles(
    quick: bool, demo_bundle: BundleMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    class Counting(OnnxRuntime):
        quick_to_load = quick

        def open(
            self, bundle: Bundle, component: str, graph: str, options: EngineOptions, lean: bool = False
        ) -> Session:
            opened.append(graph)
            return super().open(bundle, component, graph, options, lean)

    monkeypatch.setattr(vae_streams, "choose_engine", lambda bundle, options: (Counting(), ""))
    latents = np.random.default_rng(0).standard_normal((5, 16, 8, 8), dtype=np.float32)
    decoder = VaeDecoder(demo_bundle("t2v", "fp32"), EngineOptions(), tiled=True)
    found = np.concatenate(list(decoder.decode(latents)), axis=2)
    assert found.shape == (1, 3, 17, 64, 64)
    tiles = decoder.chunks(latents) // 2
    assert tiles == 4 and opened == ["first", "next"] * (tiles if quick else 1)
