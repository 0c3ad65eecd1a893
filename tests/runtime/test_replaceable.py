"""--replace takes a bundle's place, and never that of anything else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from reelquant.runtime.atomic import partial_folder
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.errors import BadInput
from tests.command_line import contents
from tests.conftest import TinyBundleMaker


@pytest.fixture
def bundle(tiny_bundle: TinyBundleMaker, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle("t2v").path, tmp_path / "bundle"))


def replaced(path: Path) -> bool:
    with partial_folder(path, replace=True) as folder:
        (folder / "new").write_text("x")
    return [entry.name for entry in path.iterdir()] == ["new"]


def test_a_bundle_is_replaced_whole_or_damaged(bundle: Path) -> None:
    shutil.copytree(bundle, bundle.with_name("damaged"))
    (bundle.with_name("damaged") / "manifest.json").write_text("{")
    (bundle / "manifest.sig").write_text("a signature")
    assert replaced(bundle) and replaced(bundle.with_name("damaged"))


def emptied(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()
    (path / "thesis.tex").write_text("x")


def linked(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.symlink_to(path.with_name("real"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (emptied, "holds no bundle"),
        (lambda path: (path / "notes.txt").write_text("mine"), "holds notes.txt, which is no part of a bundle"),
        (
            lambda path: (path / "transformer" / "old.onnx").write_text("x"),
            "holds transformer/old.onnx, which is no part",
        ),
        (lambda path: (path / "keep").mkdir(), "holds keep, which is no part of a bundle"),
        (linked, "is a link"),
    ],
)
def test_nothing_else_is(spoil: object, said: str, bundle: Path, tmp_path: Path) -> None:
    assert callable(spoil)
    spoil(bundle)
    before = contents(tmp_path)
    with pytest.raises(BadInput, match=said), partial_folder(bundle, replace=True):
        pytest.fail("the work began")
    assert contents(tmp_path) == before


def test_ranges_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "ranges").mkdir()
    for name in ("ranges.json", "ranges.safetensors"):
        (tmp_path / "ranges" / name).write_text("x")
    assert replaced(tmp_path / "ranges")


def test_a_bundle_is_still_one_when_its_place_is_taken(bundle: Path) -> None:
    """The new folder is whole before the old one goes."""
    with pytest.raises(KeyboardInterrupt), partial_folder(bundle, replace=True) as folder:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt
    assert Bundle.open(bundle).verify() > 0
