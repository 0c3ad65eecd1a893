"""Write trained networks as a diffusers checkpoint: safetensors in half precision, tokenizer, scheduler, index."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from transformers import PreTrainedTokenizerFast, T5EncoderModel, T5TokenizerFast

from demo import architecture


def tokenizer() -> PreTrainedTokenizerFast:
    """The demo's tokenizer as the class that the pipelines name."""
    return T5TokenizerFast(
        tokenizer_object=architecture.build_tokenizer(),
        extra_ids=0,
        model_max_length=architecture.TEXT_TOKENS,
    )


def save_checkpoint(
    folder: Path,
    vae: AutoencoderKLCogVideoX,
    text_encoder: T5EncoderModel,
    transformer: CogVideoXTransformer3DModel,
    task: str,
) -> None:
    """Write ``folder`` in diffusers layout; the weights are stored as float16, which the networks lose nothing by."""
    pipeline = CogVideoXImageToVideoPipeline if task == "i2v" else CogVideoXPipeline
    shutil.rmtree(folder, ignore_errors=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline(
            tokenizer=tokenizer(),
            text_encoder=text_encoder.half(),
            vae=vae.half(),
            transformer=transformer.half(),
            scheduler=CogVideoXDDIMScheduler(**architecture.SCHEDULER),
        ).save_pretrained(folder)
    for config in folder.glob("*/config.json"):  # diffusers writes down which folder a network was loaded from
        fields = json.loads(config.read_text())
        if fields.pop("_name_or_path", None) is not None:
            config.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
    for network in (vae, text_encoder, transformer):
        network.to(torch.float32)
