"""Whatever an export or a clip would stumble over later is refused first, by export and by --plan alike."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from reelquant.export.checkpoint import _HUB_ID, Checkpoint
from reelquant.export.models.cogvideox.modules import plain_convolutions
from reelquant.export.trace_bundle import trace_bundle
from reelquant.export.weights import open_weights
from reelquant.quant.calibration.plan import CalibrationPlan
from reelquant.runtime.errors import BadInput, BundleError
from tests.checkpoints import edit_json, linked_copy, put
from tests.command_line import refused
from tests.conftest import CHECKPOINTS

Capture = pytest.CaptureFixture[str]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 791656\n"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return linked_copy(tmp_path / "mine")


def both_refuse(capfd: Capture, copy: Path, *options: str) -> str:
    """The one message that ``export`` and ``export --plan`` end with before any work."""
    command = ("export", copy, copy.parent / "out", *options)
    said = [refused(capfd, copy.parent, *command, *more) for more in ((), ("--plan",))]
    assert said[0] == said[1]
    return said[0]


def few_tokens(copy: Path) -> None:
    rules = json.loads((copy / "tokenizer/tokenizer.json").read_text("utf-8"))
    rules["model"]["vocab"] = rules["model"]["vocab"][:4]
    put(copy / "tokenizer/tokenizer.json", json.dumps(rules).encode())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda c: (c / "tokenizer/tokenizer.json").unlink(), "tokenizer has neither tokenizer.json nor spiece.model"),
        (lambda c: put(c / "tokenizer/tokenizer.json", b""), "tokenizer.json: it is empty; download the checkpoint again"),
        (lambda c: put(c / "tokenizer/tokenizer.json", b"{}"), "cannot read .*tokenizer: "),
        (lambda c: put(c / "tokenizer/tokenizer.json", b'{"model": {"type": '), "cannot read .*tokenizer: "),
        (lambda c: put(c / "tokenizer/spiece.model", POINTER), "spiece.model: it is a Git LFS pointer and not the file itself"),
        (lambda c: put(c / "tokenizer/spiece.model", b""), "spiece.model: it is empty"),
        (few_tokens, r"tokenizer has \d+ tokens, and the text encoder knows 70: most of the tokenizer is missing"),
        (lambda c: edit_json(c / "text_encoder/config.json", vocab_size=40), "has token 69, and the text encoder knows 40"),
        (lambda c: put(c / "vae/diffusion_pytorch_model.safetensors", POINTER), "it is a Git LFS pointer"),
        (lambda c: put(c / "transformer/config.json", POINTER), "transformer/config.json: it is a Git LFS pointer"),
        (lambda c: put(c / "transformer/diffusion_pytorch_model.safetensors", b""), "safetensors: it is empty"),
        (lambda c: scheduler(c, "EulerDiscreteScheduler"), "scheduler: .*_class_name is 'EulerDiscreteScheduler', not one of"),
        (lambda c: scheduler(c, "DDIMScheduler"), "_class_name is 'DDIMScheduler'"),
        (lambda c: edit_json(c / "scheduler/scheduler_config.json", prediction_type="flow"), "scheduler: .*prediction_type"),
        (lambda c: edit_json(c / "scheduler/scheduler_config.json", trained_betas=[0.1]), "scheduler: .*trained_betas"),
        (
            lambda c: edit_json(c / "transformer/config.json", sample_height=300, sample_width=300),
            "has sample_height 300 and sample_width 300, so clips of 2400x2400: more than .* --size .*x480x720",
        ),
    ],
)  # fmt: skip
def test_content_is_checked_before_the_work(spoil: Any, said: str, copy: Path, capfd: Capture) -> None:
    spoil(copy)
    found = both_refuse(capfd, copy)
    assert re.search(said, found), found


def scheduler(copy: Path, name: str) -> None:
    index = json.loads((copy / "model_index.json").read_text("utf-8"))
    edit_json(copy / "model_index.json", scheduler=[index["scheduler"][0], name])


def weights(copy: Path, change: Any, component: str = "transformer") -> None:
    """Rewrite a component's weights as ``change`` makes them."""
    (file,) = (copy / component).glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    file.unlink()
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "transformer_blocks.0.attn1.to_q.lora_A.weight",
            r"so a LoRA that is not merged; merge it \(diffusers: fuse_lora",
        ),
        ("transformer_blocks.0.attn1.to_q.base_layer.weight", "so a LoRA that is not merged"),
        ("transformer_blocks.0.attn1.to_qkv.weight", "so its Q, K and V are fused; .*unfuse_qkv_projections"),
        ("_orig_mod.proj_out.weight", "so it was saved from a compiled module"),
        ("module.proj_out.weight", "so it was saved from a wrapper of several GPUs"),
        ("model.diffusion_model.proj_out.weight", "so it is in SAT's or ComfyUI's layout"),
        ("transformer_blocks.0.attn1.to_q.SCB", "so it is quantized already"),
        ("something.else", "which its config has no place for"),
    ],
)
def test_names_of_other_programs_are_explained(name: str, said: str, copy: Path) -> None:
    weights(copy, lambda tensors: tensors.update({name: torch.zeros(1)}))
    with pytest.raises(BundleError, match=said):
        Checkpoint.open(str(copy)).network("transformer")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_named_with_the_count(value: float, copy: Path, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["proj_out.weight"].view(-1)[3:8] = value

    weights(copy, spoil)
    with pytest.raises(BundleError, match=r"proj_out.weight has 5 of \d+ values that are NaN or infinite"):
        trace_bundle(str(copy), tmp_path / "out", networks=("transformer",))
    assert not (tmp_path / "out").exists()


def test_an_index_wins_over_an_old_single_file(tmp_path: Path) -> None:
    """As in diffusers, which reads the shards that the index names."""
    save_file({"a": torch.zeros(2)}, tmp_path / "diffusion_pytorch_model.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "diffusion_pytorch_model-00001-of-00001.safetensors")
    index = {"weight_map": {"a": "diffusion_pytorch_model-00001-of-00001.safetensors"}}
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert open_weights(tmp_path)["a"].read().tolist() == [1, 1]


def test_data_that_cannot_serve_names_those_that_can(tmp_path: Path, capfd: Capture) -> None:
    out = tmp_path / "out"
    said = refused(capfd, tmp_path, "export", CHECKPOINTS / "t2v", out, "--precision", "INT8")
    assert said.endswith("or calibrate on a set that fits: --data demo")
    said = refused(capfd, tmp_path, "export", CHECKPOINTS / "i2v", out, "--precision", "int8")
    assert "give --data FOLDER with prompts.txt and images/" in said


def test_revisions_of_a_hub_may_have_slashes() -> None:
    for name in ("zai-org/CogVideoX-2b", "zai-org/CogVideoX-2b@main", "owner/name@refs/pr/3"):
        assert _HUB_ID.fullmatch(name)
    for name in ("name", "a/b/c", "a/b@", "a/b@x/", "../x"):
        assert not _HUB_ID.fullmatch(name)


def test_calibration_runs_on_engines_that_read_onnx(copy: Path) -> None:
    checkpoint = Checkpoint.open(str(copy))
    from reelquant.export.sampling import AS_TRAINED

    defaults = AS_TRAINED.defaults(checkpoint, None)
    with pytest.raises(BadInput, match="tensorrt-rtx runs no ONNX graphs, and calibration watches them; one of"):
        CalibrationPlan(engine="tensorrt-rtx").clip_size(defaults, checkpoint.model)


def test_what_tracing_changes_in_diffusers_is_changed_back() -> None:
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXSafeConv3d

    before = CogVideoXSafeConv3d.forward
    with pytest.raises(KeyError), plain_convolutions():
        assert CogVideoXSafeConv3d.forward is torch.nn.Conv3d.forward
        raise KeyError
    assert CogVideoXSafeConv3d.forward is before
