"""A script for diffusers' CogVideoX pipelines, run by theirs and by ours: one line is another, and the clip is the same."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from reelquant.runtime.diffusers_pipeline import ReelquantPipeline
from reelquant.runtime.errors import BadInput, Cancelled
from reelquant.runtime.relative_l2 import relative_l2
from tests.conftest import CHECKPOINTS, BundleMaker, TinyBundleMaker

PROMPT = "a red circle moves right on a white background"
FIRST = CHECKPOINTS.parent / "first_frame.png"


def script(pipe: Any, kind: str, scheduler: str) -> np.ndarray:
    """What a user wrote for diffusers."""
    pipe.enable_model_cpu_offload() if isinstance(
        pipe, ReelquantPipeline
    ) else None  # theirs needs an accelerator for it
    pipe.vae.enable_slicing()
    if isinstance(pipe, ReelquantPipeline):
        pipe.scheduler = scheduler
    given = {"image": Image.open(FIRST)} if kind == "i2v" else {}
    frames = pipe(
        prompt=PROMPT,
        num_inference_steps=4,
        num_frames=9,
        height=64,
        width=64,
        guidance_scale=6.0,
        generator=torch.Generator().manual_seed(42),
        output_type="np",
        **given,
    ).frames[0]
    return np.asarray(frames)


@pytest.mark.parametrize("scheduler", ["ddim", "dpm"])
@pytest.mark.parametrize("kind", ["t2v", "i2v"])
def test_the_clip_is_diffusers_own(kind: str, scheduler: str, demo_bundle: BundleMaker) -> None:
    name = {"t2v": "CogVideoXPipeline", "i2v": "CogVideoXImageToVideoPipeline"}[kind]
    theirs = getattr(diffusers, name).from_pretrained(CHECKPOINTS / kind, dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    own = {"ddim": diffusers.CogVideoXDDIMScheduler, "dpm": diffusers.CogVideoXDPMScheduler}[scheduler]
    theirs.scheduler = own.from_config(theirs.scheduler.config)
    length = theirs.transformer.config.max_text_seq_length
    call = theirs.__class__.__call__

    class Theirs:
        """The demo reads fewer tokens than diffusers' default, which its own script would say."""

        vae = theirs.vae

        def __call__(self, **arguments: Any) -> Any:
            return call(theirs, max_sequence_length=length, **arguments)

    wanted = script(Theirs(), kind, scheduler)
    ours = ReelquantPipeline.from_pretrained(demo_bundle(kind, "fp32").path, torch_dtype=torch.bfloat16).to("cpu")
    found = script(ours, kind, scheduler)
    assert found.shape == wanted.shape == (9, 64, 64, 3) and found.dtype == np.float32
    assert relative_l2(found, wanted) < 0.01


@pytest.fixture
def pipe(tiny_bundle: TinyBundleMaker) -> ReelquantPipeline:
    return ReelquantPipeline(tiny_bundle("t2v").path)


def test_its_forms_of_output(pipe: ReelquantPipeline) -> None:
    clips = pipe([PROMPT, PROMPT], num_inference_steps=1, generator=7).frames
    assert len(clips) == 2 and clips[0][0].size == (32, 32) and clips[0] == clips[1]
    (plain,) = pipe(PROMPT, num_inference_steps=1, generator=7, output_type="np", return_dict=False)
    assert plain[0].shape == (9, 32, 32, 3) and 0 <= plain[0].min() <= plain[0].max() <= 1
    latents = pipe(PROMPT, num_inference_steps=1, generator=7, output_type="latent").frames[0]
    assert latents.shape == (3, 4, 4, 4)
    several = pipe(PROMPT, num_inference_steps=1, num_videos_per_prompt=2, generator=np.random.default_rng(0)).frames
    assert len(several) == 2 and several[0] != several[1]
    with pytest.raises(BadInput, match="output_type is 'pt', not one of pil, np, latent"):
        pipe(PROMPT, output_type="pt")
    with pytest.raises(BadInput, match="there is no prompt"):
        pipe()


def test_noise_that_is_handed_in(pipe: ReelquantPipeline) -> None:
    noise = torch.randn((1, 3, 4, 4, 4), generator=torch.Generator().manual_seed(1))
    drawn = pipe(PROMPT, num_inference_steps=2, generator=torch.Generator().manual_seed(1), output_type="np").frames[0]
    given = pipe(PROMPT, num_inference_steps=2, latents=noise, output_type="np").frames[0]
    assert np.array_equal(drawn, given)


def test_steps_are_heard_and_can_end_the_clip(pipe: ReelquantPipeline) -> None:
    heard: list[tuple[int, int]] = []

    def stop(self: Any, step: int, timestep: int, kwargs: dict[str, Any]) -> None:
        heard.append((step, timestep))
        if step == 1:
            raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        pipe(PROMPT, num_inference_steps=4, callback_on_step_end=stop)
    assert heard == [(0, 999), (1, 749)]


def test_schedulers_by_name_or_by_diffusers_class(pipe: ReelquantPipeline) -> None:
    pipe.scheduler = diffusers.CogVideoXDPMScheduler()
    assert pipe.scheduler == "dpm"
    pipe.scheduler = None
    with pytest.raises(BadInput, match="is none of ddim, dpm, CogVideoXDDIMScheduler, CogVideoXDPMScheduler"):
        pipe.scheduler = diffusers.EulerDiscreteScheduler()
