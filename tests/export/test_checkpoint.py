"""What is accepted as a checkpoint, what is read of it, and everything that is refused before any of it is used."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save

from reelquant.export.checkpoint import Checkpoint
from reelquant.export.network import is_fake
from reelquant.runtime.errors import BundleError
from reelquant.runtime.models.cogvideox.geometry import Geometry
from tests.checkpoints import edit_json, linked_copy, put
from tests.conftest import CHECKPOINTS

WEIGHTS = {"transformer": "diffusion_pytorch_model.safetensors", "vae": "diffusion_pytorch_model.safetensors",
           "text_encoder": "model.safetensors"}  # fmt: skip
EACH_NETWORK = pytest.mark.parametrize("folder", WEIGHTS)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return linked_copy(tmp_path / "mine")


@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_the_demo_checkpoints(task: str) -> None:
    checkpoint = Checkpoint.open(f"{CHECKPOINTS / task}/")
    assert (checkpoint.name, checkpoint.task) == (task, task)
    assert checkpoint.geometry == Geometry(spatial=8, temporal=4, patch=2, patch_t=1, latent_channels=16, max_frames=49)
    assert checkpoint.config("scheduler")["_class_name"] == "CogVideoXDDIMScheduler"


def test_the_index_says_which_scheduler(copy: Path) -> None:
    edit_json(copy / "model_index.json", scheduler=["diffusers", "CogVideoXDPMScheduler"])
    scheduler = Checkpoint.open(str(copy)).config("scheduler")
    assert scheduler["_class_name"] == "CogVideoXDPMScheduler" and scheduler["snr_shift_scale"]


@EACH_NETWORK
def test_networks_are_fp32_without_data_and_read_the_files_weights(
    folder: str, capfd: pytest.CaptureFixture[str]
) -> None:
    network = Checkpoint.open(str(CHECKPOINTS / "t2v")).network(folder)
    assert not network.module.training
    assert all(is_fake(tensor) and tensor.dtype == torch.float32 for tensor in network.module.parameters())
    stored = load_file(CHECKPOINTS / "t2v" / folder / WEIGHTS[folder])
    assert len(stored) > 10 and stored.keys() <= network.weights.keys() == network.module.state_dict().keys()
    assert all(np.array_equal(network.weights[name].read(), array.astype(np.float32)) for name, array in stored.items())
    assert capfd.readouterr() == ("", "")


def test_hashes_are_of_every_file_that_is_read(copy: Path) -> None:
    checkpoint = Checkpoint.open(str(copy))
    before = checkpoint.hashes()
    expected = {file.relative_to(copy).as_posix() for file in copy.rglob("*") if file.is_file()}
    expected -= {"README.md", "training.json"}
    assert before.keys() == expected and len(before) == 10
    index = (copy / "model_index.json").read_bytes()
    assert before["model_index.json"] == hashlib.sha256(index).hexdigest()
    (copy / "README.md").touch()
    (copy / "notes.txt").touch()
    assert checkpoint.hashes() == before
    edit_json(copy / "vae" / "config.json", scaling_factor=2.0)
    assert {name for name, digest in checkpoint.hashes().items() if before[name] != digest} == {"vae/config.json"}


def test_max_frames_are_the_kinds_own_or_what_it_was_trained_on_when_more(copy: Path) -> None:
    edit_json(copy / "transformer" / "config.json", sample_frames=81, patch_size_t=2)
    geometry = Checkpoint.open(str(copy)).geometry
    assert (geometry.max_frames, geometry.patch_t, geometry.frame_step) == (161, 2, 16)
    edit_json(copy / "transformer" / "config.json", sample_frames=81, patch_size_t=None)
    assert Checkpoint.open(str(copy)).geometry.max_frames == 81


def refuse(source: Path | str) -> str:
    with pytest.raises(BundleError) as refusal:
        Checkpoint.open(str(source))
    return str(refusal.value)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was loaded",)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.pt", "x.pth", "x.ckpt", "x.pkl"])
@EACH_NETWORK
def test_pickled_weights_are_refused_with_the_reason(copy: Path, folder: str, name: str) -> None:
    (copy / folder / WEIGHTS[folder]).unlink()
    put(copy / folder / name, pickle.dumps(Trap()))
    said = refuse(copy)
    assert (
        f"{folder}/{name} is a pickle, and loading a pickle can run any code; convert the checkpoint to safet" in said
    )


def test_a_pickle_beside_safetensors_is_not_read(copy: Path) -> None:
    put(copy / "vae" / "diffusion_pytorch_model.bin", pickle.dumps(Trap()))
    checkpoint = Checkpoint.open(str(copy))
    checkpoint.network("vae")
    assert "vae/diffusion_pytorch_model.bin" not in checkpoint.hashes()


@EACH_NETWORK
def test_no_weights_at_all(copy: Path, folder: str) -> None:
    (copy / folder / WEIGHTS[folder]).unlink()
    assert f"{folder} has no .safetensors weights, the only ones that are read; convert" in refuse(copy)


@pytest.mark.parametrize("folder", ["transformer", "tokenizer", "scheduler"])
def test_code_is_refused(copy: Path, folder: str) -> None:
    put(copy / folder / "modeling.py", b"raise SystemExit('code was run')")
    assert f"{folder}/modeling.py is code, which is never run; remove it to go on" in refuse(copy)


@pytest.mark.parametrize("key", ["auto_map", "custom_pipeline", "trust_remote_code"])
@EACH_NETWORK
def test_configs_that_ask_for_code_are_refused(copy: Path, folder: str, key: str) -> None:
    edit_json(copy / folder / "config.json", **{key: {"AutoModel": "modeling.Model"}})
    assert f"{folder}/config.json asks for code of its own, which is never run" in refuse(copy)


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, "is a StableDiffusionPipeline; reelquant reads"),
        ("model_index.json", {"_class_name": None}, "is a None; reelquant reads"),
        ("model_index.json", {"_class_name": "CogVideoXImageToVideoPipeline"}, "needs 32 in_channels, its transf.* has 16"),
        ("vae/config.json", {"_class_name": "AutoencoderKL"}, "holds a AutoencoderKL; reelquant exports AutoencoderKLCog"),
        ("text_encoder/config.json", {"architectures": None}, "holds a None; reelquant exports T5EncoderModel"),
        ("vae/config.json", {"block_out_channels": 4}, "vae/config.json has no list block_out_channels"),
        ("vae/config.json", {"temporal_compression_ratio": None}, "vae/config.json has no number temporal_compression"),
        ("transformer/config.json", {"out_channels": "16"}, "transformer/config.json has no number out_channels"),
        ("transformer/config.json", {"max_text_seq_length": None}, "has no number max_text_seq_length; download it again"),
    ],
)  # fmt: skip
def test_other_models_and_broken_configs(copy: Path, file: str, changes: dict[str, Any], words: str) -> None:
    edit_json(copy / file, **changes)
    with pytest.raises(BundleError, match=words):
        Checkpoint.open(str(copy))


@pytest.mark.parametrize("text", [b"", b"{", b"[1, 2]", b"\xff", b"[" * 100_000])
@pytest.mark.parametrize("file", ["model_index.json", "vae/config.json"])
def test_files_that_are_not_json(copy: Path, file: str, text: bytes) -> None:
    put(copy / file, text)
    assert f"cannot read {copy / file}: " in refuse(copy)


def test_places_that_are_no_checkpoints(tmp_path: Path, copy: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    assert "is neither a checkpoint folder nor a hub id such as zai-org/CogVideoX-2b" in refuse(tmp_path / "file")
    assert "is neither" in refuse("../no/such/folder") and "is neither" in refuse("gpt2")
    assert "has no model_index.json; name the folder that has it" in refuse(tmp_path / "empty")
    for link in (copy / "scheduler").iterdir():
        link.unlink()
    (copy / "scheduler").rmdir()
    assert "has no scheduler/; a CogVideoX checkpoint has transformer, vae, " in refuse(copy)


def cut(path: Path) -> None:
    put(path, path.read_bytes()[:-8])


def garbled(path: Path) -> None:
    put(path, b"not safetensors")


def without_one(path: Path) -> None:
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[5])
    put(path, save(tensors, {"format": "pt"}))


def reshaped(path: Path) -> None:
    tensors = load_file(path)
    name = sorted(tensors)[5]
    put(path, save({**tensors, name: tensors[name][:-1].copy()}, {"format": "pt"}))


@pytest.mark.parametrize("spoil", [cut, garbled, without_one, reshaped])
@EACH_NETWORK
def test_spoilt_weights_are_refused(
    copy: Path, folder: str, spoil: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    """diffusers and transformers would fill in a missing weight with random numbers, say so in a warning, and go on."""
    spoil(copy / folder / WEIGHTS[folder])
    checkpoint = Checkpoint.open(str(copy))
    with pytest.raises(BundleError, match=f"{folder}.*; download the checkpoint again") as refusal:
        checkpoint.network(folder)
    assert "\n" not in str(refusal.value) and (" lacks " in str(refusal.value)) == (spoil is without_one)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("source", "revision"), [("zai-org/CogVideoX-2b", None), ("me/x@v1.0", "v1.0")])
def test_a_hub_id_is_fetched_without_pickles_or_code(
    copy: Path, monkeypatch: pytest.MonkeyPatch, source: str, revision: str | None
) -> None:
    asked: list[Any] = []

    def snapshot_download(repository: str, **options: Any) -> str:
        asked.append((repository, options))
        return str(copy)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    checkpoint = Checkpoint.open(source)
    assert (checkpoint.path, checkpoint.name, checkpoint.task) == (copy, source, "t2v")
    patterns = ["*.json", "*.safetensors", "*.model"]
    assert asked == [(source.split("@")[0], {"revision": revision, "allow_patterns": patterns})]


def test_what_is_fetched_is_checked_too(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "vae" / WEIGHTS["vae"]).unlink()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(copy))
    assert "has no .safetensors weights" in refuse("me/pickled")


def test_a_failed_download_is_one_line_with_what_to_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no\n\nconnection.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    said = refuse("demo/chekpoints")
    assert said == (
        "demo/chekpoints is no folder here, and fetching it from the hub failed: no connection; "
        "check the name, the network and your access"
    )


def test_a_folder_is_called_by_its_own_name(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy / "vae")
    assert Checkpoint.open("..").name == Checkpoint.open(f"{copy}//").name == "mine"
