"""GPUs by name: which can be built for, and which number formats they lack."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reelquant.quant.recipe import Recipe
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.bundle.support import BASES
from reelquant.runtime.engines.options import parse_gpus
from reelquant.runtime.engines.registry import get_engine
from reelquant.runtime.engines.tensorrt import engine as tensorrt_engine
from reelquant.runtime.engines.tensorrt import stage
from reelquant.runtime.engines.tensorrt.flavor import RTX, STANDARD, Flavor
from reelquant.runtime.engines.tensorrt.loadable import why_not
from reelquant.runtime.engines.tensorrt.stage import current_gpu
from reelquant.runtime.engines.tensorrt.targets import TARGETS, buildable, check_targets, lacking, unsupported
from reelquant.runtime.errors import BadInput, EngineError
from reelquant.runtime.machine.gpus import Gpus
from tests.conftest import TinyBundleMaker

L4 = Gpus(("NVIDIA L4",), "", ((8, 9),), 13000)
H100 = Gpus(("NVIDIA H100 80GB HBM3",), "", ((9, 0),), 13000)
RECORD = {"version": "1.7.1.116", "targets": ["sm89", "sm120"], "gpu": None}


def test_names_are_sorted_and_each_once() -> None:
    assert parse_gpus("SM120, sm89,sm89") == ("sm89", "sm120")
    assert parse_gpus("current") == ("current",)
    for flavor in (RTX, STANDARD):
        check_targets(("current",), flavor)


def test_the_rtx_package_builds_for_what_we_list() -> None:
    assert buildable(RTX) == ["sm75", "sm80", "sm86", "sm89", "sm120", "sm121"]


@pytest.mark.parametrize(
    ("text", "flavor", "message"),
    [
        ("sm90", RTX, "does not build for 'sm90'; one of sm75, sm80, sm86, sm89, sm120, sm121"),
        ("ada", RTX, "does not build for 'ada'"),
        ("", RTX, "does not build for ''"),
        ("current,sm89", RTX, "does not build for 'current'"),
        ("sm90", STANDARD, "tensorrt builds only for the GPU of the machine it runs on: use --gpu current there"),
    ],
)
def test_others_are_refused(text: str, flavor: Flavor, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        check_targets(parse_gpus(text), flavor)


def test_formats_by_capability() -> None:
    formats = {"bf16": BASES["bf16"], **Recipe.load("fp8").support("bf16"), **Recipe.load("nvfp4").support("bf16")}
    able = {
        format: {name for name, target in TARGETS.items() if target.computes(support)}
        for format, support in formats.items()
    }
    assert able["bf16"] == TARGETS.keys() - {"sm75"}
    assert able["fp8"] == {"sm89", "sm90", "sm100", "sm103", "sm120", "sm121"}
    assert able["nvfp4"] == {"sm100", "sm103", "sm120", "sm121"}
    assert lacking(("sm89", "sm120"), {"fp8": formats["fp8"], "bf16": formats["bf16"]}) is None
    assert (
        lacking(("sm86", "sm89"), {"fp8": formats["fp8"]})
        == "sm86 (Ampere: A10, A40, RTX 30) has no fp8; sm89 and newer do"
    )
    assert lacking(("current",), {"fp8": formats["fp8"]}) is None


@pytest.mark.parametrize(
    ("record", "here", "version", "reason"),
    [
        (RECORD, L4, "1.7.1.116", None),
        (RECORD, Gpus((), "no NVIDIA driver (libcuda.so.1 is not there)"), "1.7.1.116", "no NVIDIA driver"),
        (RECORD, L4, "1.8.0", "built with tensorrt-rtx 1.7.1.116, and this is 1.8.0; install that version, or build"),
        (RECORD, replace(L4, driver=12040), "1.7.1.116", r"driver knows CUDA 12.4, and cuda-bindings 13\S* needs 13.0; update"),
        (RECORD, Gpus(("A10",), "", ((8, 6),)), "1.7.1.116", r"built for sm89, sm120, and this GPU is a A10 \(sm86\)"),
        (RECORD, H100, "1.7.1.116", r"tensorrt-rtx 1.7.1.116 does not support NVIDIA H100 80GB HBM3 \(sm90\), only sm75, "),
        ({**RECORD, "targets": ["current"], "gpu": "NVIDIA L4 (sm89)"}, L4, "1.7.1.116", None),
        ({**RECORD, "targets": ["current"], "gpu": "NVIDIA L40S (sm89)"}, L4, "1.7.1.116", r"built for NVIDIA L40S \(sm89\)"),
    ],
)  # fmt: skip
def test_why_an_engine_cannot_run_here(record: dict[str, object], here: Gpus, version: str, reason: str | None) -> None:
    found = why_not(RTX, record, here, version)
    if reason is None:
        assert found is None
        return
    assert found is not None
    with pytest.raises(EngineError, match=reason):
        raise EngineError(found)


def test_hopper_is_refused_before_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-RTX builds engines on an H100, and then refuses to load them."""
    assert (
        unsupported(STANDARD, H100) is None and unsupported(RTX, L4) is None and unsupported(RTX, Gpus((), "")) is None
    )
    monkeypatch.setattr(stage, "gpus", lambda: H100)
    with pytest.raises(
        BadInput, match=r"--gpu current cannot be built for: .*only sm75.*; use --engine onnxruntime or"
    ):
        current_gpu(("current",), RTX)
    assert current_gpu(("sm89",), RTX) is None
    assert current_gpu(("current",), STANDARD) == "NVIDIA H100 80GB HBM3 (sm90)"


def test_nothing_runs_here_without_a_gpu(monkeypatch: pytest.MonkeyPatch, tiny_bundle: TinyBundleMaker) -> None:
    monkeypatch.setattr(tensorrt_engine, "gpus", lambda: Gpus((), "no NVIDIA driver"))
    bundle = tiny_bundle("t2v")
    built = {"tensorrt-rtx": {**RECORD, "version": RTX.version()}}
    with pytest.raises(BadInput, match="tensorrt-rtx cannot run .* here: no NVIDIA driver"):
        get_engine("tensorrt-rtx").check_runs(Bundle(bundle.path, replace(bundle.manifest, engines=built)))
    with pytest.raises(BadInput, match="it has no tensorrt-rtx engines; build them with: reelquant build BUNDLE"):
        get_engine("tensorrt-rtx").check_runs(bundle)
