"""What README and docs tell a reader to type: code runs, and commands, options, targets and modules exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from reelquant.runtime.cli import cli
from tests.conftest import ROOT, BundleMaker

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "guide").glob("*.md")),
]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")


def blocks(language: str) -> list[tuple[str, str]]:
    """Fenced blocks of a language, with the page that each is on."""
    found = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(page.name, block) for page in PAGES for block in found.findall(page.read_text("utf-8"))]


def typed() -> list[tuple[str, str]]:
    """Command lines of shell blocks, continuation lines joined and comments cut, and of inline code."""
    lines = [
        (page, line.partition("   #")[0].partition("  #")[0].strip())
        for page, block in blocks("sh")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
        lines += [(page.name, code.replace("\n", " ")) for code in re.findall(r"`([^`]+)`", text)]
    return [(page, line) for page, line in lines if line]


def command(words: list[str]) -> click.Command:
    found = cli.get_command(click.Context(cli), words[0])
    assert found is not None, f"there is no command {words[0]}"
    return found


@pytest.mark.parametrize(("page", "code"), blocks("python"))
def test_python_examples_run(page: str, code: str, demo_bundle: BundleMaker, tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    for name in set(re.findall(r"build/(demo-(t2v|i2v)-(\w+))", code)):
        (tmp_path / "build" / name[0]).symlink_to(demo_bundle(name[1], name[2]).path)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=False, cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    for saved in re.findall(r'\.save\("([^"]+)"\)', code):
        assert (tmp_path / saved).stat().st_size > 0


def test_there_is_such_an_example() -> None:
    assert blocks("python") and blocks("sh")


@pytest.mark.parametrize(("page", "line"), [each for each in typed() if re.match(r"(\S*/)?reelquant \w", each[1])])
def test_reelquant_commands_exist_with_these_options(page: str, line: str) -> None:
    words = shlex.split(line.replace("\\|", " ").replace("[", " ").replace("]", " "))
    found = command(words[1:])
    known = {name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts)}
    asked = [word for word in words[2:] if re.match(r"--?[a-z]", word)]
    assert {word.partition("=")[0] for word in asked} <= known | {"--help"}, f"{page}: {line}"


@pytest.mark.parametrize(("page", "line"), [each for each in typed() if each[1].startswith("make ")])
def test_make_targets_and_variables_exist(page: str, line: str) -> None:
    for part in re.split(r"\s*&&\s*", line):
        words = shlex.split(part)
        if words[0] != "make":
            continue
        for word in words[1:]:
            name, equals, _ = word.partition("=")
            pattern = rf"^{name} [?:]?=" if equals else rf"^{name}:"
            assert re.search(pattern, MAKEFILE, re.MULTILINE), f"{page}: {line}: {word}"


@pytest.mark.parametrize("module", sorted({m for _, line in typed() for m in re.findall(r"python -m ([\w.]+)", line)}))
def test_modules_that_are_run_exist(module: str) -> None:
    assert find_spec(module) is not None


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """A link that leads nowhere, a page that no table of contents has, a name that autodoc does not find."""
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(ROOT / "docs")]
    ran = subprocess.run([*build, str(tmp_path / "site")], check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    commands = (tmp_path / "site" / "reference" / "cli.html").read_text("utf-8")
    assert all(f"reelquant {name}" in commands.replace("-", " ") for name in ("export", "generate", "quantize decoder"))
    assert "ReelquantPipeline" in (tmp_path / "site" / "reference" / "api.html").read_text("utf-8")


def test_every_numerics_and_every_public_name_is_in_the_docs() -> None:
    from reelquant import runtime
    from reelquant.quant.numerics import NUMERICS

    recipes = (ROOT / "docs" / "guide" / "recipes.md").read_text("utf-8")
    assert [name for name in NUMERICS if f"`{name}`" not in recipes] == []
    assert all(getattr(runtime, name).__doc__ for name in runtime.__all__)
