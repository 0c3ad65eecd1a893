"""Guidance against diffusers' pipeline: the scale it uses at each step, and the latents it ends with."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_dpm_cogvideox

from demo.architecture import SCHEDULER
from reelquant.runtime.models.cogvideox.guidance import combine, dynamic_scale
from reelquant.runtime.models.cogvideox.rope import rotary_tables
from reelquant.runtime.models.cogvideox.schedulers import scheduler_from_config, with_class

UNTYPED: Any = diffusers  # its constructors have no types
SHAPE = (1, 3, 4, 6, 8)
STEPS, SCALE = 6, 6.0


@pytest.fixture(scope="module")
def transformer() -> Any:
    torch.manual_seed(0)
    model = UNTYPED.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        in_channels=SHAPE[2],
        out_channels=SHAPE[2],
        time_embed_dim=16,
        text_embed_dim=8,
        max_text_seq_length=4,
        sample_height=6,
        sample_width=8,
        sample_frames=9,
        use_rotary_positional_embeddings=True,
    )
    # At its own initialisation the text hardly reaches the output, and guidance would have nothing to act on.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


@pytest.mark.parametrize("name", ["ddim", "dpm"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_loop_of_these_parts_ends_where_the_pipeline_does(
    monkeypatch: pytest.MonkeyPatch, transformer: Any, name: str, dynamic: bool
) -> None:
    config = with_class(SCHEDULER, name)
    rng = np.random.default_rng(3)
    start, noise = (rng.standard_normal(SHAPE, dtype=np.float32) for _ in range(2))
    uncond, cond = (torch.from_numpy(rng.standard_normal((1, 4, 8), dtype=np.float32)) for _ in range(2))

    monkeypatch.setattr(scheduling_dpm_cogvideox, "randn_tensor", lambda *_, **__: torch.from_numpy(noise))
    pipeline = UNTYPED.CogVideoXPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=transformer,
        scheduler=getattr(UNTYPED, config["_class_name"])(**SCHEDULER),
    )
    pipeline.set_progress_bar_config(disable=True)
    scales: list[float] = []

    def note_scale(pipeline: Any, i: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        scales.append(pipeline.guidance_scale)
        return {}

    expected = pipeline(
        prompt_embeds=cond,
        negative_prompt_embeds=uncond,
        latents=torch.from_numpy(start),
        height=48,
        width=64,
        num_frames=9,
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        use_dynamic_cfg=dynamic,
        output_type="latent",
        callback_on_step_end=note_scale,
    ).frames.numpy()

    rotary = tuple(torch.from_numpy(table) for table in rotary_tables(transformer.config, SHAPE[1], *SHAPE[3:]))
    run = scheduler_from_config(config).begin(STEPS, rng, lambda shape: noise)
    latents = start
    for i, timestep in enumerate(run.timesteps):
        scale = dynamic_scale(SCALE, int(timestep), STEPS) if dynamic else SCALE
        assert scale == scales[i]
        with torch.no_grad():
            # One batch of two, as the pipeline: batches of one round otherwise.
            both = transformer(
                torch.from_numpy(latents).expand(2, -1, -1, -1, -1),
                torch.cat([uncond, cond]),
                torch.full((2,), int(timestep)),
                image_rotary_emb=rotary,
                return_dict=False,
            )[0].numpy()
        assert np.abs(both[0] - both[1]).max() > 0.01
        latents = run.step(i, combine(both[:1], both[1:], scale), latents)
    assert len(scales) == STEPS
    np.testing.assert_allclose(latents, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))


def test_combine_is_torchs_float32_expression() -> None:
    rng = np.random.default_rng(0)
    uncond, cond = (rng.standard_normal((1, 3, 4, 5), dtype=np.float32) for _ in range(2))
    made = combine(uncond, cond, np.float64(6.1))
    low, high = torch.from_numpy(uncond), torch.from_numpy(cond)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, (low + 6.1 * (high - low)).numpy(), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(combine(uncond, cond, 0), uncond)


def test_combine_widens_half_precision_first() -> None:
    uncond, cond = np.full((2,), 1000, np.float16), np.full((2,), 20000, np.float16)
    np.testing.assert_array_equal(combine(uncond, cond, 6), np.full((2,), 115000, np.float32))


def test_combine_refuses_to_broadcast() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3\) and conditional \(2, 3\)"):
        combine(np.zeros((1, 3)), np.zeros((2, 3)), 6.0)


def test_dynamic_scale_is_least_at_the_runs_length_and_most_at_the_end() -> None:
    assert dynamic_scale(6.0, 50, 50) == 1.0
    assert dynamic_scale(6.0, 0, 50) == 7.0
    assert math.isclose(dynamic_scale(6.0, 25, 50), 1 + 3 * (1 - math.cos(math.pi / 32)))
