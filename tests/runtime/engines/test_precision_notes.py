"""What a precision is said to be worth here: in doctor, inspect and generate, with INT8 units and without."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from reelquant.quant.calibration.calibrate import calibrate
from reelquant.quant.calibration.data import CalibrationData
from reelquant.quant.calibration.plan import CalibrationPlan
from reelquant.quant.quantize import quantize_bundle
from reelquant.quant.recipe import Recipe
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.bundle.support import Support
from reelquant.runtime.engines import onnxruntime
from reelquant.runtime.engines.openvino import engine as openvino
from reelquant.runtime.engines.precision_notes import Note, note_of
from reelquant.runtime.engines.registry import get_engine
from reelquant.runtime.machine import cpu_units
from reelquant.runtime.machine.cpu_units import has_int8_units
from tests.conftest import TinyBundleMaker
from tests.tiny_bundle import RECIPE

X86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the caps are of x86")


@pytest.fixture(scope="module")
def int8(tiny_bundle: TinyBundleMaker, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    fp32, out = tiny_bundle("t2v"), tmp_path_factory.mktemp("int8") / "bundle"
    ranges = calibrate(fp32, CalibrationData.load("demo"), CalibrationPlan(prompts=1, steps=1))
    return quantize_bundle(fp32, ranges, Recipe.parse(RECIPE), out)


def notes(engine: str) -> tuple[Note, ...]:
    return get_engine(engine).precision_notes()


def int8_units(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(openvino, "saturates", lambda: not there)
    monkeypatch.setattr(onnxruntime, "has_int8_units", lambda: there)


def texts(engine: str) -> dict[str, str]:
    return {note.precision: note.text for note in notes(engine)}


def test_with_int8_units(monkeypatch: pytest.MonkeyPatch) -> None:
    int8_units(monkeypatch, True)
    for name in ("openvino", "onnxruntime"):
        assert texts(name)["int8"] == "saves time and memory: this CPU multiplies bytes"
        assert {note.precision for note in notes(name) if note.faster} == {"int8", "int8-reduced"}


def test_without_int8_units(monkeypatch: pytest.MonkeyPatch) -> None:
    int8_units(monkeypatch, False)
    monkeypatch.setattr(openvino, "instruction_sets", lambda: ("avx2",))
    for name, saved in (("openvino", "memory, not time"), ("onnxruntime", "disk, not time or memory")):
        assert texts(name)["int8"] == f"saves {saved}: without VNNI it is computed in float to stay exact"
        assert not any(note.faster for note in notes(name))
    monkeypatch.setattr(openvino, "instruction_sets", lambda: ("avx2", "avx512f"))
    assert {note.precision for note in notes("openvino") if note.faster} == {"int8-reduced"}
    assert notes("tensorrt") == ()  # only a measurement could say


@pytest.mark.parametrize(
    ("flags", "units"),
    [
        ("avx2 fma", False),
        ("avx2 avx512f avx512bw", False),
        ("avx2 avx_vnni", True),
        ("avx512f avx512_vnni", True),
        ("", False),
    ],
)
def test_units_are_the_kernels_flags(flags: str, units: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_units, "read_lines", lambda path: [f"flags\t\t: {flags}", "", "flags\t\t: avx_vnni"])
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert has_int8_units() == units  # the first processor's, where a virtual machine has two kinds
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert has_int8_units()


def test_a_bundles_own(int8: Bundle, tiny_bundle: TinyBundleMaker) -> None:
    high = note_of(tiny_bundle("t2v").manifest, notes("openvino"))
    low = note_of(int8.manifest, notes("openvino"))
    assert high and low and (high.precision, low.precision) == ("fp32", "int8")
    assert note_of(int8.manifest, notes("tensorrt-rtx")) is None
    for formats, noted in (
        (["int8_reduced"], "int8-reduced"),
        (["fp8_weight", "fp8"], "fp8"),
        (["int4_weight"], "weight-only"),
    ):
        part = replace(int8.manifest.components["transformer"], formats=dict.fromkeys(formats, Support()))
        found = note_of(replace(int8.manifest, components={"transformer": part}), notes("openvino"))
        assert found and found.precision == noted


@X86
def test_what_a_user_is_told_without_vnni(int8: Bundle, tmp_path: Path) -> None:
    """A terminal gets one line; a pipe and --json do not, and there it is a field."""
    environment = {**os.environ, "DNNL_MAX_CPU_ISA": "AVX2", "COLUMNS": "200"}
    program = str(Path(sys.executable).with_name("reelquant"))
    command = [program, "generate", str(int8.path), "a red circle", "--seed", "1", "-o"]
    line = "int8 on this CPU, with openvino: saves memory, not time: without VNNI it is computed in float to stay exact"
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal, os.fdopen(theirs, "wb") as its:
        subprocess.run([*command, tmp_path / "a.npy"], env=environment, stderr=its, stdout=subprocess.PIPE, check=False)
        assert terminal.read(65536).decode().count(line) == 1
    said = [
        subprocess.run(
            [*command, tmp_path / "b.npy", *more], env=environment, capture_output=True, text=True, check=False
        )
        for more in ((), ("--json",))
    ]
    assert all(each.returncode in (0, 1) and line not in each.stdout + each.stderr for each in said)
    assert json.loads(said[1].stdout)["precision_here"] == {
        "precision": "int8",
        "faster": False,
        "text": line.partition(": ")[2],
    }
    doctor, inspect = (
        subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, check=True).stdout
        for arguments in (("doctor",), ("inspect", str(int8.path)))
    )
    assert line in inspect and "  int8         saves memory, not time: without VNNI" in doctor
