"""An engine that another package brings: one file and an entry point, and every command knows it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reelquant.runtime.engines.registry import GROUP
from reelquant.runtime.pipeline import load_pipeline
from reelquant.runtime.relative_l2 import relative_l2
from reelquant.runtime.request import Request
from tests.conftest import ROOT, BundleMaker

PROMPT = "a red circle moves right on a white background"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a process in which the package ``toy`` is installed."""
    site = tmp_path / "site"
    made = site / "toy-1.0.dist-info"
    made.mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "toys" / "toy_engine.py", site)
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (made / "entry_points.txt").write_text(f"[{GROUP}]\ntoy = toy_engine:ToyEngine\n")
    return {**os.environ, "PYTHONPATH": str(site)}


def reelquant(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("reelquant")), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_toy_engine_renders_the_demo(environment: dict[str, str], demo_bundle: BundleMaker, tmp_path: Path) -> None:
    shutil.copytree(demo_bundle("t2v", "fp32").path, tmp_path / "bundle")
    built = reelquant(environment, "build", tmp_path / "bundle", "--engine", "toy")
    assert built.returncode == 0 and "7 graphs ready for toy" in built.stdout, built.stderr
    # Without --engine: the one that the bundle was built for last is among those that run here.
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert "toy" in manifest["engines"]
    clip = (PROMPT, "--seed", 1, "--steps", 2, "--size", "9x96x96", "-o", tmp_path / "clip.npy", "--json")
    made = reelquant(environment, "generate", tmp_path / "bundle", *clip, "--engine", "toy")
    assert made.returncode == 0 and json.loads(made.stdout)["engine"] == "toy", made.stderr
    wanted = load_pipeline(tmp_path / "bundle", "onnxruntime").generate(Request(PROMPT, seed=1, steps=2, frames=9))
    found = np.load(tmp_path / "clip.npy")
    assert relative_l2(found.astype(np.float32), wanted.frames.astype(np.float32)) < 0.01


def test_it_is_in_every_list(environment: dict[str, str], demo_bundle: BundleMaker, tmp_path: Path) -> None:
    said = " ".join(reelquant(environment, "generate", "--help").stdout.split()).replace("- ", "-")
    assert "One of openvino, onnxruntime, onnxruntime-cuda, tensorrt-rtx, tensorrt, toy" in said
    reports = json.loads(reelquant(environment, "doctor", "--json").stdout)["engines"]
    assert [report["engine"] for report in reports if report["usable"]] == ["openvino", "onnxruntime", "toy"]
    unknown = reelquant({**os.environ}, "build", demo_bundle("t2v", "fp32").path, "--engine", "toy")
    assert unknown.returncode == 2 and "unknown engine 'toy'; one of openvino" in unknown.stderr


def test_one_that_is_broken_is_a_reason_and_hides_no_other(
    environment: dict[str, str], demo_bundle: BundleMaker, tmp_path: Path
) -> None:
    (tmp_path / "site" / "toy_engine.py").write_text("import a_package_that_is_not_there\n")
    reports = json.loads(reelquant(environment, "doctor", "--json").stdout)["engines"]
    (toy,) = (report for report in reports if report["engine"] == "toy")
    assert not toy["usable"] and "the engine toy (toy_engine:ToyEngine) does not load: No module named" in toy["reason"]
    assert [report["engine"] for report in reports if report["usable"]] == ["openvino", "onnxruntime"]
    asked = reelquant(environment, "build", demo_bundle("t2v", "fp32").path, "--engine", "toy")
    assert asked.returncode == 2 and "does not load" in asked.stderr and "Traceback" not in asked.stderr
