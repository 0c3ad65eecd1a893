"""Imports point one way: export → quant → runtime."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

FORBIDDEN = {"runtime": ("quant", "export"), "quant": ("export",), "export": ()}
OUTSIDE = ("benchmarks", "demo", "tests")
# Commands are named as text, and imported when they are run.
LAZY = {ROOT / "runtime" / "cli.py"}


def breaches(source: str, folder: str, lazy: bool = False) -> list[str]:
    """What a module of ``folder`` names that it may not: imports anywhere in it, and texts that could be imported."""
    forbidden = tuple(f"reelquant.{name}" for name in FORBIDDEN[folder]) + OUTSIDE
    found = []
    for node in ast.walk(ast.parse(source)):
        texts = [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) and not lazy else []
        named = [*_imported(node), *(text.partition(":")[0] for text in texts if text.startswith("reelquant."))]
        found += [name for name in named if any(f"{name}.".startswith(f"{start}.") for start in forbidden)]
    return found


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "a relative import"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_no_module_imports_against_the_direction(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert len(files) > 5
    found = {str(file): breaches(file.read_text("utf-8"), folder, file in LAZY) for file in files}
    assert {file: names for file, names in found.items() if names} == {}


def test_the_one_exception_is_text_only() -> None:
    for file in LAZY:
        assert breaches(file.read_text("utf-8"), "runtime") != []


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("runtime", "import reelquant.quant.recipe"),
        ("runtime", "def f():\n    from reelquant.export.road import export_checkpoint"),
        ("runtime", "from reelquant import quant"),
        ("runtime", "if TYPE_CHECKING:\n    from reelquant.quant import ranges as r"),
        ("runtime", "import_module('reelquant.export')"),
        ("runtime", "TARGET = 'reelquant.quant.commands:quantize'"),
        ("quant", "import os, reelquant.export as e"),
        ("quant", "from demo.clips import FRAMES"),
        ("export", "import tests.conftest"),
    ],
)
def test_a_planted_breach_is_found(folder: str, source: str) -> None:
    assert len(breaches(source, folder)) == 1


def test_what_is_allowed_is_not_a_breach() -> None:
    source = "import numpy\nfrom reelquant.runtime.bundle import Bundle\nx = 'export the checkpoint again'\nimport demography"
    assert breaches(source, "quant") == [] and breaches(source, "runtime") == []
    assert breaches("from reelquant.quant.calibration.ranges import Ranges", "export") == []


def test_relative_imports_are_noticed() -> None:
    with pytest.raises(AssertionError, match="relative"):
        breaches("from .bundle import Bundle", "runtime")


def test_every_folder_of_the_package_is_checked() -> None:
    assert {path.name for path in Path(ROOT / "typings" / "reelquant").iterdir()} == FORBIDDEN.keys()
