"""--replace takes a bundle's place, and never that of anything else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.errors import BadInput
from reelquant.runtime.files.atomic import partial_folder
from tests.command_line import contents
from tests.conftest import TinyBundleMaker

RANGES = '{"version": 1, "digest": "", "provenance": {}}'


@pytest.fixture
def bundle(tiny_bundle: TinyBundleMaker, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle("t2v").path, tmp_path / "bundle"))


def replaced(path: Path) -> bool:
    with partial_folder(path, replace=True) as folder:
        (folder / "new").write_text("x")
    return [entry.name for entry in path.iterdir()] == ["new"]


def test_a_bundle_is_replaced_whole_or_damaged(bundle: Path) -> None:
    shutil.copytree(bundle, bundle.with_name("damaged"))
    (bundle.with_name("damaged") / "tokenizer.json").unlink()
    (bundle / "manifest.sig").write_text("a signature")
    assert replaced(bundle) and replaced(bundle.with_name("damaged"))


def emptied(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()
    (path / "thesis.tex").write_text("x")


def another_program(path: Path) -> None:
    """Of a web page, which has a manifest of this name too."""
    (path / "manifest.json").write_text('{"name": "page", "files": ["index.html"]}')


def ranges_and_more(path: Path) -> None:
    shutil.rmtree(path)
    (path / "transformer").mkdir(parents=True)
    (path / "transformer" / "mine.bin").write_text("x")
    (path / "ranges.json").write_text(RANGES)


def many(path: Path) -> None:
    for name in "abcde":
        (path / name).write_text("x")


def linked_file(path: Path) -> None:
    (path / "engines").mkdir()
    (path / "engines" / "mine").symlink_to(path)


def linked(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.symlink_to(path.with_name("real"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (emptied, "holds no bundle"),
        (another_program, "holds no bundle"),
        (lambda path: (path / "manifest.json").write_text("{"), "holds no bundle"),
        (lambda path: (path / "manifest.json").write_text("[" * 100_000), "holds no bundle"),
        (ranges_and_more, "not replaced: transformer/mine.bin; move"),
        (many, "not replaced: a, b, c and 2 more; move"),
        (linked_file, "not replaced: engines/mine; move"),
        (
            lambda path: (path / "notes.txt").write_text("mine"),
            "no part of a bundle, so it is not replaced: notes.txt; move",
        ),
        (lambda path: (path / "transformer" / "old.onnx").write_text("x"), "not replaced: transformer/old.onnx; move"),
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
    (tmp_path / "ranges" / "ranges.json").write_text(RANGES)
    (tmp_path / "ranges" / "ranges.safetensors").write_text("x")
    assert replaced(tmp_path / "ranges")


def test_a_bundle_is_still_one_when_its_place_is_taken(bundle: Path) -> None:
    """The new folder is whole before the old one goes."""
    with pytest.raises(KeyboardInterrupt), partial_folder(bundle, replace=True) as folder:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt
    assert Bundle.open(bundle).verify() > 0
