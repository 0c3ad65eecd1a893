"""What a format needs stands in its own file: nobody else names MXFP8, NVFP4, or TensorRT's operators for them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from reelquant.quant.numerics import NUMERICS, High, Numerics
from reelquant.quant.recipe import built_in_recipes

ROOT = Path(__file__).parents[3]
NAMED = re.compile(r"(?i)mx_?fp8|nv_?fp4|TRT_FP4|TRT_MXFP8")


def names(tree: ast.AST) -> Iterator[str]:
    """Identifiers and texts of a module, but for its docstrings."""
    documented = [
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in documented:
            yield node.value
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def test_no_other_file_names_a_block_format() -> None:
    found = {}
    for package in ("export", "quant", "runtime"):
        for path in sorted((ROOT / package).rglob("*.py")):
            named = sorted({name for name in names(ast.parse(path.read_text("utf-8"))) if NAMED.search(name)})
            if named and path.parent != ROOT / "quant" / "numerics":
                found[str(path.relative_to(ROOT))] = named
    assert found == {}
    assert {"mxfp8", "nvfp4"} <= {name for name in built_in_recipes()}


def test_the_search_finds_what_is_planted() -> None:
    planted = 'def f():\n    """mxfp8"""\n    if "nvfp4" in formats: manifest.is_mxfp8(TRT_FP4)'
    assert sorted(name for name in names(ast.parse(planted)) if NAMED.search(name)) == ["TRT_FP4", "is_mxfp8", "nvfp4"]


@pytest.mark.parametrize("name", [name for name in NUMERICS if name != "high"])
def test_every_kind_answers(name: str) -> None:
    numerics = NUMERICS[name]
    assert not isinstance(numerics, High) and isinstance(numerics, Numerics)
    shape = 1920, 7680
    assert 0.5 <= numerics.stored_bytes(shape) / (shape[0] * shape[1]) < 1.2
    for base in numerics.bases:
        support = numerics.support(base)
        assert 75 <= support.gpu <= 120
        assert numerics.limits is None or support.cpu or numerics.support("fp32").cpu  # judged where a CPU computes it
