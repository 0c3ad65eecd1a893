"""A fresh environment with the base install and an engine, and nothing else of ours, renders clips: with today's versions, and
with the lowest that pyproject.toml allows. The lowest of the export's packages export.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT, BundleMaker

ABSENT = ("torch", "onnx", "onnx_ir", "onnxscript", "diffusers", "transformers", "safetensors")


def requirements() -> tuple[list[str], dict[str, list[str]]]:
    """The base install's, and those of each extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return project["dependencies"], project["optional-dependencies"]


def lowest(wanted: list[str]) -> list[str]:
    assert all(requirement.count(">=") == 1 for requirement in wanted)
    return [requirement.replace(">=", "==") for requirement in wanted]


def installed(place: Path, packages: list[str]) -> Path:
    """The Python of a new environment with these packages and ours."""
    python = place / "venv" / "bin" / "python"
    for command in (
        (sys.executable, "-m", "venv", place / "venv"),
        (python, "-m", "pip", "install", "--quiet", *packages),
        (python, "-m", "pip", "install", "--quiet", "--no-deps", ROOT),
    ):
        subprocess.run([str(part) for part in command], check=True, cwd=place)
    return python


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_lean_install_renders_both_clips(demo_bundle: BundleMaker, tmp_path: Path) -> None:
    def run(*command: str | Path) -> str:
        done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True, cwd=tmp_path)
        return done.stdout

    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", f"{ROOT}[openvino]")
    found = run(python, "-c", f"import importlib.util as u; print([m for m in {ABSENT!r} if u.find_spec(m)])")
    assert found.strip() == "[]"
    for task in ("t2v", "i2v"):
        bundle, clip = demo_bundle(task, "int8").path, tmp_path / f"{task}.mp4"
        image: list[str | Path] = ["--image", ROOT / "demo" / "first_frame.png"] if task == "i2v" else []
        prompt = "a blue triangle moves up on a grey background"
        options: list[str | Path] = ["--seed", "1", "--steps", "4", "-o", clip, "--json"]
        printed = run(python.with_name("reelquant"), "generate", bundle, prompt, *image, *options)
        assert json.loads(printed)["frames"] == 17 and clip.stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_lowest_versions_render_a_clip(demo_bundle: BundleMaker, tmp_path: Path) -> None:
    """A floor that nobody tried is a guess."""
    base, extras = requirements()
    python = installed(tmp_path, lowest([*base, *extras["openvino"], *extras["onnxruntime"]]))
    for engine in ("openvino", "onnxruntime"):
        clip = tmp_path / f"{engine}.mp4"
        options = ("--seed", "1", "--steps", "2", "--engine", engine, "-o", str(clip), "--json")
        arguments = ("generate", str(demo_bundle("t2v", "int8").path), "a red circle moves right", *options)
        ran = subprocess.run(
            [str(python.with_name("reelquant")), *arguments], check=False, capture_output=True, text=True, cwd=tmp_path
        )
        assert ran.returncode in (0, 1), ran.stderr  # 1: two steps make a poor clip
        assert json.loads(ran.stdout)["frames"] == 17 and clip.stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_lowest_versions_export(tmp_path: Path) -> None:
    """Beside them the base install's are newer: diffusers itself wants that."""
    base, extras = requirements()
    python = installed(tmp_path, [*base, *lowest([*extras["export"], *extras["openvino"]])])
    command = ("export", str(ROOT / "demo" / "checkpoints" / "t2v"), "out", "--precision", "int8", "--data", "demo")
    subprocess.run([str(python.with_name("reelquant")), *command], check=True, cwd=tmp_path)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text("utf-8"))["precision"] == "int8"
