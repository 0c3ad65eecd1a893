"""``reelquant doctor BUNDLE --gpu``: a GPU that is not here, and real engines' records."""

from __future__ import annotations

import json

import pytest

from tests.command_line import only_message, run
from tests.conftest import BundleMaker, TinyBundleMaker


def test_a_card_by_name(rtx_bundle: BundleMaker, capfd: pytest.CaptureFixture[str]) -> None:
    path = rtx_bundle("t2v", "fp8").path
    shown = run(capfd, "doctor", path, "--gpu", "RTX 4090")
    assert (shown.code, shown.err) == (0, "")
    assert "fits: networks stay loaded" in shown.out and "the card's own limits, not measured" in shown.out
    assert "24 GB, 1,008 GB/s, sm89" in shown.out
    found = json.loads(run(capfd, "doctor", path, "--gpu", "RTX 4090", "--json").out)
    (plan,) = found["plans"]
    assert found["gpu"]["name"] == "RTX 4090" and plan["way"] == "keep" and plan["mismatch"] is None
    assert [stage["name"] for stage in plan["stages"]] == ["text_encoder", "transformer", "vae_decoder"]
    assert plan["kept_bytes"] < plan["free"] and plan["seconds"].keys() == {
        "text_encoder",
        "transformer",
        "vae_decoder",
    }
    assert 0 < sum(plan["seconds"].values()) < 60
    slower = json.loads(run(capfd, "doctor", path, "--gpu", "L4", "--json").out)["plans"][0]
    assert slower["seconds"]["transformer"] > plan["seconds"]["transformer"]


def test_a_card_that_the_engines_are_not_for(rtx_bundle: BundleMaker, capfd: pytest.CaptureFixture[str]) -> None:
    shown = run(capfd, "doctor", rtx_bundle("t2v", "fp8").path, "--gpu", "A100")
    assert "its engines are for sm89, sm120, and A100 is sm80: they would not load there" in shown.out
    assert "at least" not in shown.out  # which has no FP8


def test_so_many_gigabytes(rtx_bundle: BundleMaker, capfd: pytest.CaptureFixture[str]) -> None:
    path = rtx_bundle("i2v", "fp16").path
    (plan,) = json.loads(run(capfd, "doctor", path, "--gpu", "0.56GB", "--json").out)["plans"]
    assert plan["way"] is None and plan["seconds"] is None and plan["advice"]
    assert [stage["name"] for stage in plan["stages"]][1] == "vae_encoder"
    shown = run(capfd, "doctor", path, "--gpu", "0.56GB")
    assert shown.code == 0 and "does not fit: " in shown.out and "GB of activations" in shown.out


def test_what_cannot_be_answered_is_refused(
    rtx_bundle: BundleMaker, tiny_bundle: TinyBundleMaker, capfd: pytest.CaptureFixture[str]
) -> None:
    path = rtx_bundle("t2v", "fp16").path
    for arguments, said in (
        (("--gpu", "24GB"), "there is none: reelquant doctor BUNDLE --gpu"),
        ((path, "--gpu", "Radeon"), "unknown GPU 'Radeon'; give its memory, such as 24GB, or one of"),
        ((tiny_bundle("t2v").path, "--gpu", "24GB"), "has no engines for a GPU"),
        (
            (path, "--gpu", "24GB", "--size", "17x64x64"),
            "no engine was built for this size (17x64x64: transformer/main; built: batch 1, height 12",
        ),
        ((path, "--gpu", "24GB", "--size", "17x65x64"), "height 65 is not a positive multiple of 16"),
        ((path, "--tiled"), "name that too: --gpu 24GB"),
    ):
        shown = run(capfd, "doctor", *arguments)
        assert shown.code == 2 and said in only_message(shown.err)
