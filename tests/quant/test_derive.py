"""A bundle that is made of another: what is written anew, what stays, and what a failure leaves."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from reelquant.quant.derive import derive_bundle
from reelquant.runtime.bundle import Bundle, list_files, write_manifest
from reelquant.runtime.errors import BadInput, BundleError
from tests.command_line import contents
from tests.conftest import TinyBundleMaker


@pytest.fixture
def source(tiny_bundle: TinyBundleMaker, tmp_path: Path) -> Bundle:
    """With a compiled engine, which no other bundle may have."""
    folder = tmp_path / "source"
    shutil.copytree(tiny_bundle("t2v").path, folder)
    (folder / "engines" / "tensorrt-rtx").mkdir(parents=True)
    (folder / "engines" / "tensorrt-rtx" / "a.engine").write_bytes(b"engine")
    engines = {"tensorrt-rtx": {"version": "1", "targets": ["sm89"], "gpu": None, "engines": []}}
    write_manifest(folder, replace(tiny_bundle("t2v").manifest, engines=engines, files=list_files(folder)))
    return Bundle.open(folder)


def test_what_is_not_changed_is_the_same(source: Bundle, tmp_path: Path) -> None:
    with derive_bundle(source, tmp_path / "out", ["transformer"]) as derived:
        assert not (derived.folder / "transformer").exists() and not (derived.folder / "manifest.json").exists()
        models = derived.models("transformer")
        models["main"].graph.name = "another"
        derived.write("transformer", models)
        derived.note("transformer", {"main": {"renamed": {"graphs": 1}}})
        derived.note("transformer", {"main": {"judged": {"rel_l2": 0.0}}})
        derived.changes["precision"] = "other"
    made = Bundle.open(tmp_path / "out")
    assert made.verify() == len(made.manifest.files) and made.manifest.engines == {} != source.manifest.engines
    assert not (made.path / "engines").exists() and made.manifest.precision == "other"
    for component in source.manifest.components:
        same = made.component_digest(component) == source.component_digest(component)
        assert same == (component != "transformer")
    passes, before = (each.manifest.components["transformer"].passes.get("main", {}) for each in (made, source))
    assert passes == {**before, "renamed": {"graphs": 1}, "judged": {"rel_l2": 0.0}}


def test_a_failure_leaves_nothing(source: Bundle, tmp_path: Path) -> None:
    before = contents(tmp_path)
    with pytest.raises(ZeroDivisionError), derive_bundle(source, tmp_path / "out", ["transformer"]):
        raise ZeroDivisionError
    assert contents(tmp_path) == before


def test_a_damaged_source_and_a_taken_name_are_refused_before_anything_is_copied(
    source: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="exists"), derive_bundle(source, source.path):
        raise AssertionError
    file = source.path / "vae_decoder" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    with pytest.raises(BundleError, match="was changed after export"), derive_bundle(source, tmp_path / "out"):
        raise AssertionError
