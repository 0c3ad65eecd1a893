"""A fresh environment with the base install and OpenVINO, and nothing else of ours, renders both kinds of clip."""

from __future__ import annotations

import json
import subprocess
import sys
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
