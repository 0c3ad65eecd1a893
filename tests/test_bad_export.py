"""What an export cannot use, through the command line: refused before the long work, and nothing left."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import edit_json, linked_copy, put
from tests.command_line import contents, only_message, refused
from tests.conftest import CHECKPOINTS
from tests.walls import run_behind_wall

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--precision int4",
            "unknown precision 'int4'; one of fp32, fp16, bf16, fp8, fp8-ends-high, fp8-minmax, int4-weight, int8, int8-ends-high, int8-minmax, int8-reduced, int8-weight, mxfp8, nvfp4, or a recipe file (.toml)",
        ),
        ("--precision none.toml", "cannot read the recipe none.toml"),
        ("--engine torch", "unknown engine 'torch'; one of openvino, onnxruntime"),
        ("--size 17x100x96", "height 100 is not a positive multiple of 16; the nearest is 96"),
        ("--size 0x96x96", "0 frames is not 8N+1 from 9 to 49; the nearest is 9"),
        ("--precision int8 --data none", "no calibration data in none"),
        ("--precision int8 --calibration-prompts 99", "calibration data general has 32 prompts; 99 cannot be used"),
        ("--precision int8 --data demo --calibration-size 17x100x96", "height 100 is not a positive multiple of 16"),
        (
            "--precision int8 --data demo --calibration-size 0x96x96",
            "0 frames is not 8N+1 from 9 to 49; the nearest is 9",
        ),
        ("--precision fp16 --base bf16", "precision fp16 is a base itself; leave --base bf16 out"),
        ("--precision int8 --data demo --base fp8", "unknown base precision 'fp8'; one of fp32, fp16, bf16"),
        (
            "--precision fp8 --data demo --engine tensorrt-rtx --gpu sm86,sm89",
            "sm86 (Ampere: A10, A40, RTX 30) has no fp8; sm89 and newer do; choose other GPUs",
        ),
        (
            "--precision fp16 --engine tensorrt-rtx --gpu sm75",
            "sm75 (Turing: T4, RTX 20) has no bf16; sm80 and newer do",
        ),
        ("--precision nvfp4 --data demo", "TensorRT alone computes in NVFP4, beside 16 bit; use --engine tensorrt-rtx"),
        ("--precision nvfp4 --data demo --plan", "TensorRT alone computes in NVFP4, beside 16 bit; use"),
        (
            "--precision nvfp4 --data demo --engine tensorrt-rtx --gpu sm89",
            "sm89 (Ada: L4, L40S, RTX 40) has no nvfp4; sm100 and newer do",
        ),
        (
            "--precision nvfp4 --data demo --engine tensorrt-rtx --gpu sm120 --dynamic --clip 9x32x32 --clip 9x32x48",
            "TensorRT takes NVFP4 graphs for one size at a time; leave --dynamic out",
        ),
        ("--precision fp16 --engine tensorrt-rtx", "--gpu current is the GPU of this machine, and there is no NVIDIA"),
        ("--precision fp16 --engine tensorrt-rtx --gpu sm89 --clip 9x33x32", "height 33 is not a positive multiple"),
        (
            "--precision int8",
            "calibration data general has 0 images for 16 prompts; give --data FOLDER with prompts.txt and images/",
        ),
    ],
)
@pytest.mark.parametrize("kept", [False, True])
def test_export_options(options: str, message: str, kept: bool, tmp_path: Path, capfd: Capture) -> None:
    """All of it before the long work begins."""
    work = ["--work", tmp_path] if kept else []
    command = ["export", CHECKPOINTS / "i2v", tmp_path / "out", "--quiet", "--json", *options.split(), *work]
    assert message in refused(capfd, tmp_path, *command)


def test_export_with_prompts_that_the_model_cannot_read(tmp_path: Path, capfd: Capture) -> None:
    said = refused(capfd, tmp_path, "export", CHECKPOINTS / "t2v", tmp_path / "out", "--precision", "int8", "--json")
    assert "calibration data general, prompt 1: the prompt is " in said and "this model reads 24" in said
    assert said.endswith("or calibrate on a set that fits: --data demo")


def test_export_of_what_is_no_checkpoint(tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    checkpoint = linked_copy(tmp_path / "checkpoint")
    for command in ("export", "trace"):
        options = [tmp_path / "out", "--quiet", "--json"]
        said = refused(capfd, tmp_path, command, tmp_path / "none", *options)
        assert "none is neither a checkpoint folder nor a hub id such as zai-org/CogVideoX-2b; check the name" in said
        said = refused(capfd, tmp_path, command, checkpoint / "vae", *options)
        assert "is not a diffusers checkpoint: it has no model_index.json; name the folder that has it" in said
        said = refused(capfd, tmp_path, command, checkpoint, checkpoint, *options[1:])
        assert "checkpoint exists and is not empty; choose another name" in said


def test_export_of_a_checkpoint_that_could_run_code(tmp_path: Path, capfd: Capture) -> None:
    command = ["export", tmp_path / "checkpoint", tmp_path / "out", "--quiet", "--json"]
    checkpoint = linked_copy(tmp_path / "checkpoint")
    put(checkpoint / "vae" / "modeling.py", b"")
    assert "vae/modeling.py is code, which is never run; remove it to go on" in refused(capfd, tmp_path, *command)
    (checkpoint / "vae" / "modeling.py").unlink()
    weights = next((checkpoint / "vae").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    said = refused(capfd, tmp_path, *command)
    assert "is a pickle, and loading a pickle can run any code; convert the checkpoint to safetensors" in said
    weights.with_suffix(".bin").rename(weights)
    edit_json(checkpoint / "transformer" / "config.json", auto_map={"AutoModel": "modeling.Model"})
    assert "asks for code of its own, which is never run; use" in refused(capfd, tmp_path, *command)


def test_an_engine_that_is_not_installed_is_noticed_before_an_export(tmp_path: Path) -> None:
    ran = run_behind_wall(["openvino"], "export", CHECKPOINTS / "t2v", tmp_path / "out", "--json", "--quiet")
    assert (ran.returncode, ran.stdout, contents(tmp_path)) == (2, "", {})
    assert only_message(ran.stderr) == "openvino is not installed; install it with: pip install 'reelquant[openvino]'"
