"""The configs of the five public CogVideoX checkpoints, for checkpoints of their shape with random weights.

As published by their authors (zai-org/CogVideoX-2b, -5b, -5b-I2V, CogVideoX1.5-5B, -5B-I2V) in config.json.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

_TRANSFORMER: dict[str, Any] = {
    "_class_name": "CogVideoXTransformer3DModel",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 64,
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 16,
    "max_text_seq_length": 226,
    "norm_elementwise_affine": True,
    "norm_eps": 1e-05,
    "num_attention_heads": 48,
    "num_layers": 42,
    "out_channels": 16,
    "patch_size": 2,
    "sample_frames": 49,
    "sample_height": 60,
    "sample_width": 90,
    "spatial_interpolation_scale": 1.875,
    "temporal_compression_ratio": 4,
    "temporal_interpolation_scale": 1.0,
    "text_embed_dim": 4096,
    "time_embed_dim": 512,
    "timestep_activation_fn": "silu",
    "use_rotary_positional_embeddings": True,
}
_TWO: dict[str, Any] = {"num_attention_heads": 30, "num_layers": 30, "use_rotary_positional_embeddings": False}
_ONE_AND_A_HALF: dict[str, Any] = {
    "patch_bias": False,
    "patch_size_t": 2,
    "sample_frames": 81,
    "sample_height": 96,
    "sample_width": 170,
}
_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKLCogVideoX",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 256, 512],
    "down_block_types": ["CogVideoXDownBlock3D"] * 4,
    "in_channels": 3,
    "latent_channels": 16,
    "latents_mean": None,
    "latents_std": None,
    "layers_per_block": 3,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_height": 480,
    "sample_width": 720,
    "scaling_factor": 0.7,
    "temporal_compression_ratio": 4,
    "up_block_types": ["CogVideoXUpBlock3D"] * 4,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}
_T5_XXL: dict[str, Any] = {
    "architectures": ["T5EncoderModel"],
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "dense_act_fn": "gelu_new",
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_decoder_layers": 24,
    "num_heads": 64,
    "num_layers": 24,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "vocab_size": 32128,
}
_SCHEDULER: dict[str, Any] = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "sample_max_value": 1.0,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "timestep_spacing": "trailing",
    "trained_betas": None,
}
# Every shape that matters at a width that a test can afford: heads, text, VAE and T5 small; all switches as they are.
_SMALL_VAE: dict[str, Any] = {"block_out_channels": [8, 16, 16, 16], "layers_per_block": 1, "norm_num_groups": 4,
                              "sample_height": 96, "sample_width": 160}  # fmt: skip
_SMALL_T5: dict[str, Any] = {"d_ff": 48, "d_kv": 8, "d_model": 32, "num_heads": 4, "num_layers": 2, "vocab_size": 600}


@dataclass(frozen=True)
class Variant:
    """One public checkpoint: its pipeline, the configs of its networks, and the dtype its weights are stored in."""

    pipeline: str
    dtype: str
    transformer: dict[str, Any]
    vae: dict[str, Any]
    text_encoder: dict[str, Any]
    scheduler: dict[str, Any]

    def layers(self, count: int) -> Variant:
        """The same with ``count`` transformer blocks, and no more T5 blocks than that."""
        text = {**self.text_encoder, "num_layers": min(count, self.text_encoder["num_layers"])}
        return replace(self, transformer={**self.transformer, "num_layers": count}, text_encoder=text)

    def reduced(self) -> Variant:
        """The same with 2 layers of 2 heads and small other networks, trained at 64×96 pixels and the same frames."""
        transformer = {
            **self.transformer,
            "num_attention_heads": 2,
            "num_layers": 2,
            "sample_height": 8,
            "sample_width": 12,
            "text_embed_dim": _SMALL_T5["d_model"],
            "time_embed_dim": 32,
        }
        if transformer.get("ofs_embed_dim"):
            transformer["ofs_embed_dim"] = 32
        return replace(
            self,
            transformer=transformer,
            vae={**self.vae, **_SMALL_VAE},
            text_encoder={**self.text_encoder, **_SMALL_T5},
        )


def _variant(image: bool, dtype: str, scaling: float, scheduler: str, shift: float, **transformer: Any) -> Variant:
    switches = {"in_channels": 32} if image else {}
    return Variant(
        pipeline="CogVideoXImageToVideoPipeline" if image else "CogVideoXPipeline",
        dtype=dtype,
        transformer={**_TRANSFORMER, **transformer, **switches},
        vae={**_VAE, "scaling_factor": scaling, "invert_scale_latents": image and "patch_size_t" in transformer},
        text_encoder=_T5_XXL,
        scheduler={**_SCHEDULER, "_class_name": scheduler, "snr_shift_scale": shift},
    )


VARIANTS: dict[str, Variant] = {
    "cogvideox-2b": _variant(False, "F16", 1.15258426, "CogVideoXDDIMScheduler", 3.0, **_TWO),
    "cogvideox-5b": _variant(False, "BF16", 0.7, "CogVideoXDPMScheduler", 1.0),
    "cogvideox-5b-i2v": _variant(
        True, "BF16", 0.7, "CogVideoXDPMScheduler", 1.0, use_learned_positional_embeddings=True
    ),
    "cogvideox1.5-5b": _variant(False, "BF16", 0.7, "CogVideoXDPMScheduler", 1.0, **_ONE_AND_A_HALF),
    "cogvideox1.5-5b-i2v": _variant(
        True, "BF16", 0.7, "CogVideoXDPMScheduler", 1.0, ofs_embed_dim=512, **_ONE_AND_A_HALF
    ),
}
