"""The demo's networks: CogVideoX in every respect but size."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from demo.clips import BACKGROUNDS, COLOURS, DIRECTIONS, FRAMES, SHAPES, SIZE

TEXT_TOKENS = 24
TEXT_WIDTH = 128

VAE: dict[str, Any] = {
    "block_out_channels": (16, 32, 64, 64),
    "down_block_types": ("CogVideoXDownBlock3D",) * 4,
    "up_block_types": ("CogVideoXUpBlock3D",) * 4,
    "layers_per_block": 1,
    "latent_channels": 16,
    "norm_num_groups": 8,
    "sample_height": SIZE,
    "sample_width": SIZE,
}
TRANSFORMER: dict[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 64,
    "num_layers": 6,
    "in_channels": 16,
    "out_channels": 16,
    "time_embed_dim": 64,
    "text_embed_dim": TEXT_WIDTH,
    "max_text_seq_length": TEXT_TOKENS,
    "sample_width": SIZE // 8,
    "sample_height": SIZE // 8,
    "sample_frames": FRAMES,
    "patch_size": 2,
    "temporal_compression_ratio": 4,
    "use_rotary_positional_embeddings": True,
}
TEXT_ENCODER: dict[str, Any] = {
    "d_model": TEXT_WIDTH,
    "d_kv": 32,
    "d_ff": 256,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
}
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
    "snr_shift_scale": 1.0,
    "timestep_spacing": "trailing",
}


def build_tokenizer() -> Tokenizer:
    """A T5-shaped tokenizer (unigram over ``▁`` pieces; pad 0, eos 1, unk 2) over the captions' words and letters."""
    words = ["a", "moves", "past", "small", "on", "background", *COLOURS, *SHAPES, *DIRECTIONS, *BACKGROUNDS]
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz0123456789,.'-!?"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -2.0) for word in words] + [(letter, -8.0) for letter in letters]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    # As transformers rebuilds a T5 tokenizer when it loads one, whatever the file says.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer
