"""A fresh environment with the base install and an engine, and nothing else of ours, renders clips: with today's versions, and
with the lowest that pyproject.toml allows.
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
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["openvino"], *extras["onnxruntime"]]
    lowest = [requirement.replace(">=", "==") for requirement in wanted]
    assert all(requirement.count("==") == 1 for requirement in lowest)
    python = tmp_path / "venv" / "bin" / "python"
    for command in (
        (sys.executable, "-m", "venv", tmp_path / "venv"),
        (python, "-m", "pip", "install", "--quiet", *lowest),
        (python, "-m", "pip", "install", "--quiet", "--no-deps", ROOT),
    ):
        subprocess.run([str(part) for part in command], check=True, cwd=tmp_path)
    for engine in ("openvino", "onnxruntime"):
        clip = tmp_path / f"{engine}.mp4"
        options = ("--seed", "1", "--steps", "2", "--engine", engine, "-o", str(clip), "--json")
        arguments = ("generate", str(demo_bundle("t2v", "int8").path), "a red circle moves right", *options)
        ran = subprocess.run(
            [str(python.with_name("reelquant")), *arguments], check=False, capture_output=True, text=True, cwd=tmp_path
        )
        assert ran.returncode in (0, 1), ran.stderr  # 1: two steps make a poor clip
        assert json.loads(ran.stdout)["frames"] == 17 and clip.stat().st_size > 1000
