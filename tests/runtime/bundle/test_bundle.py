"""What a bundle notices of what was done to its files. Every tampering is done on a copy of a real, tiny bundle."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from reelquant.runtime.bundle import Bundle, hash_file, list_files
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.registry import get_engine
from reelquant.runtime.engines.session import Session
from reelquant.runtime.errors import BundleError
from tests.conftest import TinyBundleMaker

WEIGHTS = "transformer/weights.safetensors"


def opened_graphs(bundle: Bundle, component: str, *graphs: str) -> dict[str, Session]:
    return get_engine("onnxruntime").open_component(bundle, component, EngineOptions(), *graphs)


@pytest.fixture
def bundle(tiny_bundle: TinyBundleMaker, tmp_path: Path) -> Bundle:
    shutil.copytree(tiny_bundle("i2v").path, tmp_path / "b")
    return Bundle.open(tmp_path / "b")


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def as_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def test_a_whole_bundle_verifies(bundle: Bundle) -> None:
    names = {path.relative_to(bundle.path).as_posix() for path in bundle.path.rglob("*") if path.is_file()}
    assert bundle.manifest.files.keys() == names - {"manifest.json"} and WEIGHTS in names
    assert bundle.verify() == len(names) - 1
    assert list_files(bundle.path) == bundle.manifest.files


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (Path.unlink, "is missing"),
        (as_folder, "is missing"),
        (as_link, "is a link"),
        (lambda path: os.truncate(path, path.stat().st_size - 1), r"has \d+ bytes where \d+ are expected: truncated"),
        (lambda path: path.write_bytes(b""), "has 0 bytes where"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "truncated or changed"),
    ],
)
def test_what_is_seen_when_it_is_opened(bundle: Bundle, change: Callable[[Path], None], words: str) -> None:
    change(bundle.path / WEIGHTS)
    for act in (bundle.verify, lambda: Bundle.open(bundle.path)):
        with pytest.raises(BundleError, match=f"{WEIGHTS}.*{words}|elsewhere is not in the manifest"):
            act()
    with pytest.raises(BundleError, match=f"{WEIGHTS}.*{words}"):
        Bundle.open(bundle.path)


@pytest.mark.parametrize("at", [0, 3000, -1])
def test_one_bit_is_seen_when_the_component_is_used(bundle: Bundle, at: int) -> None:
    flip(bundle.path / WEIGHTS, at)
    opened = Bundle.open(bundle.path)
    assert opened_graphs(opened, "text_encoder", "main")["main"].inputs == ("input_ids",)
    for act in (opened.verify, opened.check_hashes, lambda: opened_graphs(opened, "transformer")):
        with pytest.raises(BundleError, match=f"{WEIGHTS} was changed after export: its sha256 .*; copy it again"):
            act()


@pytest.mark.parametrize(
    "name", ["notes.txt", ".hidden", "transformer/.cache", "new/deep/file", "vae_decoder/manifest.json"]
)
def test_an_extra_file_fails_verify_only(bundle: Bundle, name: str) -> None:
    (bundle.path / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle.path / name).touch()
    with pytest.raises(BundleError, match=f"{name} is not in the manifest; remove it or export again"):
        Bundle.open(bundle.path).verify()


def test_a_linked_folder_fails_verify(bundle: Bundle) -> None:
    (bundle.path / "link").symlink_to(bundle.path / "transformer", target_is_directory=True)
    with pytest.raises(BundleError, match="link is not in the manifest"):
        bundle.verify()
    (bundle.path / "link").unlink()
    (bundle.path / "transformer").rename(bundle.path.parent / "moved")
    (bundle.path / "transformer").symlink_to(bundle.path.parent / "moved", target_is_directory=True)
    with pytest.raises(BundleError, match="transformer is not in the manifest"):
        bundle.verify()


def test_the_digest_is_of_names_and_content(bundle: Bundle, tiny_bundle: TinyBundleMaker) -> None:
    assert bundle.digest == tiny_bundle("i2v").digest != tiny_bundle("t2v").digest and len(bundle.digest) == 64
    manifest = bundle.path / "manifest.json"
    manifest.write_text(manifest.read_text("utf-8").replace('"steps": 4', '"steps": 5'), "utf-8")
    assert Bundle.open(bundle.path).digest == bundle.digest
    old = bundle.manifest.files[WEIGHTS].sha256
    manifest.write_text(manifest.read_text("utf-8").replace(old, "0" * 64), "utf-8")
    assert Bundle.open(bundle.path).digest != bundle.digest


def test_places_that_are_no_bundles(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "latin").mkdir()
    (tmp_path / "latin" / "manifest.json").write_bytes(b"\xff{}")
    for name, words in {"none": "no such folder; make one with", "file": "no such folder", "empty": "has no manifest.json",
                        "latin": "cannot read .*manifest.json"}.items():  # fmt: skip
        with pytest.raises(BundleError, match=words):
            Bundle.open(tmp_path / name)


def test_graphs_that_it_does_not_have(bundle: Bundle) -> None:
    assert bundle.graph("vae_decoder", "next") == bundle.path / "vae_decoder" / "next.onnx"
    for component, graph in (("vae_decoder", "last"), ("upscaler", "main")):
        with pytest.raises(BundleError, match=f"has no graph {component}/{graph}; export it again"):
            bundle.graph(component, graph)
        with pytest.raises(BundleError, match="has no graph"):
            opened_graphs(bundle, component, graph)
    with pytest.raises(BundleError, match="has no graph upscaler"):
        opened_graphs(bundle, "upscaler")


def test_copied_files_are_the_same(bundle: Bundle, tmp_path: Path) -> None:
    bundle.copy_files(tmp_path / "copy", lambda name: name.startswith("vae_"))
    copied = list_files(tmp_path / "copy")
    assert copied == {name: entry for name, entry in bundle.manifest.files.items() if name.startswith("vae_")} != {}
    assert hash_file(tmp_path / "copy" / "vae_encoder/image.onnx") == copied["vae_encoder/image.onnx"].sha256
