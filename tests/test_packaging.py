"""The wheel has all of the package and nothing else: built, and its names compared with what lies on the disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

FOLDERS = ("export", "quant", "runtime")
# In a namespace of Hugging Face's optimum, which must have no __init__.py (PEP 420).
REGISTER, NAMESPACE = Path("export/optimum_register"), "optimum.commands.register"


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_every_package_on_disk_is_listed(project: dict[str, Any]) -> None:
    files = [file.relative_to(ROOT) for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]
    packages = {".".join(("reelquant", *file.parent.parts)) for file in files if file.parent != REGISTER}
    listed = project["tool"]["setuptools"]["packages"]
    assert {*listed} == packages | {"reelquant.calib_data", NAMESPACE} and len(listed) == len({*listed})
    assert [file.name for file in files if file.parent == REGISTER] == ["reelquant.py"]
    for package in packages:
        assert ROOT.joinpath(*package.split(".")[1:], "__init__.py").is_file(), package
    folders = project["tool"]["setuptools"]["package-dir"]
    own = {f"reelquant.{folder}": folder for folder in (*FOLDERS, "calib_data")}
    assert folders == {**own, NAMESPACE: REGISTER.as_posix()}


def test_type_checkers_find_the_folders_under_the_import_name() -> None:
    links = {path.name: os.readlink(path) for path in (ROOT / "typings" / "reelquant").iterdir()}
    assert links == {folder: f"../../{folder}" for folder in FOLDERS}
    if (ROOT / ".git").exists():
        command = ["git", "-C", str(ROOT), "ls-files", "-s", "typings"]
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        stored = {line.split("\t")[1]: line.split()[0] for line in listed}
        assert stored == {f"typings/reelquant/{folder}": "120000" for folder in FOLDERS}


def test_the_base_install_is_lean(project: dict[str, Any]) -> None:
    names = {text.split(">")[0] for text in project["project"]["dependencies"]}
    assert names == {"av", "click", "numpy", "pillow", "rich", "tokenizers"}
    extras = {
        "export",
        "openvino",
        "onnxruntime",
        "onnxruntime-cuda",
        "tensorrt",
        "tensorrt-rtx",
        "sign",
        "optimum",
        "docs",
        "notebook",
        "dev",
    }
    assert project["project"]["optional-dependencies"].keys() == extras


def test_the_wheel(tmp_path: Path) -> None:
    assert int(version("setuptools").split(".")[0]) >= 80, "the dev extra brings the setuptools that builds the wheel"
    # A copy, since setuptools leaves its work beside the sources, and packs what an earlier build left there.
    ignored = shutil.ignore_patterns("__pycache__", ".*", "build", "checkpoints", "*.egg-info")
    source = shutil.copytree(ROOT, tmp_path / "source", symlinks=True, ignore=ignored)
    (source / "runtime" / "notes.txt").touch()
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    ran = subprocess.run([*command, "-w", str(tmp_path), str(source)], check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    (wheel,) = tmp_path.glob("reelquant-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        facts = archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
        brought = archive.read(next(name for name in names if name.endswith(".dist-info/top_level.txt"))).decode()
    data = [
        "quant/lint/*.json",
        "quant/recipes/*.toml",
        "calib_data/*.md",
        "calib_data/*/prompts.txt",
        "calib_data/*/images/*",
    ]
    data += [f"{folder}/{pattern}" for folder in FOLDERS for pattern in ("py.typed", "**/*.py")]
    assert all(any(ROOT.glob(pattern)) for pattern in data)
    wanted = [file for pattern in data for file in ROOT.glob(pattern)]
    packed = {name for name in names if ".dist-info/" not in name}
    places = {file.relative_to(ROOT) for file in wanted}
    registered = {f"{NAMESPACE.replace('.', '/')}/{file.name}" for file in places if file.parent == REGISTER}
    assert packed == {f"reelquant/{file.as_posix()}" for file in places if file.parent != REGISTER} | registered
    assert brought.split() == ["reelquant"]  # and not optimum, whose namespace is another's (setup.py)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert "License-Expression: Apache-2.0" in facts and "Provides-Extra: tensorrt-rtx" in facts
