"""The traced modules: diffusers' and transformers' networks with the signatures that a bundle's graphs have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Caches = dict[str, Tensor]


class TextEncoder(nn.Module):
    """``input_ids [batch, text_tokens] int64 → embeds [batch, text_tokens, text_width]``.

    CogVideoX attends to the padding too (its pipelines pass no mask), so there is none here.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        embeds: Tensor = self.encoder(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).last_hidden_state
        return embeds


class RotaryAttention:
    """Attention over text and video together, spelled out as MatMul–Softmax–MatMul.

    The rotary tables cover the text tokens as well (cosine 1, sine 0), so the whole sequence is rotated in one
    multiply-add and nothing is split or scattered. The scale is on the query, where every engine's fusion expects it.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        text_tokens = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = (
            project(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = attn.norm_q(query), attn.norm_k(key)
        if image_rotary_emb is not None:
            query, key = rotate(query, *image_rotary_emb), rotate(key, *image_rotary_emb)
        mixed = attn.to_out[0](self.attend(query, key, value).transpose(1, 2).flatten(2))
        return mixed[:, text_tokens:], mixed[:, :text_tokens]

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """softmax(Q·Kᵀ/√d)·V of [batch, heads, tokens, head_dim] each."""
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        return scores.softmax(-1) @ value


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring pairs of x [batch, heads, tokens, head_dim] by the tables [tokens, head_dim] (RoFormer)."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack([-odd, even], dim=-1).flatten(-2) * sin


class Transformer(nn.Module):
    """One denoising step.

    ``latents [batch, latent_frames, channels, height, width]``, ``text [batch, text_tokens, text_width]`` and
    ``timestep [batch] int64`` → ``velocity``, shaped as the latents. Variants take more, each where it has it:
    ``image_latents``, shaped as the latents and joined on the channel axis; ``ofs [1]`` (CogVideoX 1.5 I2V);
    ``rotary_cos`` and ``rotary_sin [text_tokens + video_tokens, head_dim]``; ``positions [text_tokens + video_tokens,
    width]``, added to the embedded tokens.
    """

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        transformer.set_attn_processor(RotaryAttention())
        # Positions come as an input, so that one graph serves every size: diffusers would compute them, in constants.
        transformer.patch_embed.use_positional_embeddings = False
        transformer.patch_embed.use_learned_positional_embeddings = False
        transformer.embedding_dropout = self.added = AddPositions()
        self.transformer = transformer

    def forward(
        self,
        latents: Tensor,
        text: Tensor,
        timestep: Tensor,
        image_latents: Tensor | None = None,
        ofs: Tensor | None = None,
        rotary_cos: Tensor | None = None,
        rotary_sin: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        self.added.positions = positions
        rotary = None if rotary_cos is None else (rotary_cos, rotary_sin)
        joined = latents if image_latents is None else torch.cat([latents, image_latents], dim=2)
        velocity: Tensor = self.transformer(
            joined, text, timestep, ofs=ofs, image_rotary_emb=rotary, return_dict=False
        )[0]
        return velocity


class AddPositions(nn.Module):
    """Stands where diffusers has a dropout between the patch embedding and the blocks."""

    positions: Tensor | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens if self.positions is None else tokens + self.positions


class VaeStream(nn.Module):
    """One chunk of the causal 3D VAE: ``x`` and the caches of the chunk before → the chunk's output and new caches.

    Each cache is the last two frames that a causal convolution saw. Without caches this is the stream's first chunk.
    1×1×1 convolutions report caches too, but look at no earlier frame, so theirs are dropped.
    """

    def __init__(self, vae: Any, half: str) -> None:
        super().__init__()
        self.network = getattr(vae, half)
        self.before = vae.post_quant_conv if half == "decoder" else None
        self.after = vae.quant_conv if half == "encoder" else None

    def step(self, x: Tensor, caches: Caches | None) -> tuple[Tensor, Caches]:
        if self.before is not None:
            x = self.before(x)
        y, new = self.network(x, conv_cache=_nest(caches) if caches else None)
        if self.after is not None:
            y = self.after(y)
        return y, _flatten(new)


class VaeDecoder(VaeStream):
    """``latents [1, channels, latent_frames, height, width] → frames [1, 3, frames, 8·height, 8·width]``."""

    def __init__(self, vae: Any) -> None:
        super().__init__(vae, "decoder")

    def forward(self, latents: Tensor, caches: Caches | None = None) -> tuple[Tensor, Caches]:
        return self.step(latents, caches)


class VaeEncoder(VaeStream):
    """``frames → moments [1, 2·channels, latent_frames, height, width]``: mean and log variance of the posterior."""

    def __init__(self, vae: Any) -> None:
        super().__init__(vae, "encoder")

    def forward(self, frames: Tensor, caches: Caches | None = None) -> tuple[Tensor, Caches]:
        return self.step(frames, caches)


def _flatten(nested: dict[str, Any], prefix: str = "cache") -> Caches:
    flat: Caches = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}.{name}"))
        elif value is not None and name not in ("conv_y", "conv_b"):
            flat[f"{prefix}.{name}"] = value
    return flat


def _nest(flat: Caches) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *folders, leaf = path.split(".")[1:]
        place = nested
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = value
    return nested


@contextmanager
def plain_convolutions() -> Iterator[None]:
    """Make diffusers' "safe" 3D convolution a plain one while tracing.

    It splits its input when that exceeds 2 GB, and the size check is control flow on shapes, which a trace with
    symbolic sizes cannot follow. The split changes memory, not results.
    """
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXSafeConv3d

    before = CogVideoXSafeConv3d.forward
    CogVideoXSafeConv3d.forward = nn.Conv3d.forward
    try:
        yield
    finally:
        CogVideoXSafeConv3d.forward = before
