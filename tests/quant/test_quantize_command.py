"""``reelquant quantize`` on the demo: what it explains, what a budget finds, and what the gate lets through."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reelquant.quant.calibration.ranges import Ranges
from reelquant.quant.evaluation import limits
from reelquant.quant.evaluation.teacher import Trial
from reelquant.quant.graph.graph_files import WEIGHTS, load_graph
from reelquant.quant.graph.linears import linear_nodes
from reelquant.quant.numerics import Quantized
from reelquant.quant.recipe import Recipe, Rule
from reelquant.quant.search.budget import Budget
from reelquant.quant.search.strengths import CANDIDATES, search_strengths
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.registry import open_onnx
from reelquant.runtime.errors import BadInput
from tests.command_line import only_message, run
from tests.conftest import BUILD, BundleMaker

Capture = pytest.CaptureFixture[str]
QUICK = ["--data", "demo", "--gate-prompts", "1", "--gate-steps", "2"]
TRIAL = Trial("demo", prompts=1, steps=2)


@pytest.fixture
def source(demo_bundle: BundleMaker) -> list[Path]:
    """The fp32 bundle and its ranges, both of the shared road."""
    demo_bundle("t2v", "int8")
    return [demo_bundle("t2v", "fp32").path, BUILD / "work-t2v" / "ranges"]


def quantized(capfd: Capture, source: list[Path], *options: Any) -> dict[str, Any]:
    ran = run(capfd, "quantize", *source, *options, *QUICK, "--json")
    assert ran.code == 0, ran.err
    found: dict[str, Any] = json.loads(ran.out)
    return found


def weights(bundle: Path) -> str:
    return Bundle.open(bundle).manifest.files[f"transformer/{WEIGHTS}"].sha256


def test_every_linear_is_explained(source: list[Path], tmp_path: Path, capfd: Capture) -> None:
    said = quantized(capfd, source, tmp_path / "out", "--explain", "--recipe", "fp8")
    linears = {linear.name for linear in linear_nodes(load_graph(source[0] / "transformer" / "main.onnx"))}
    lines = {line["name"]: line for line in said["linears"]}
    assert linears | {f"transformer_blocks.{number}.attn1" for number in range(6)} == lines.keys()
    recipe = Recipe.load("fp8")
    for name, line in lines.items():
        rule = recipe.rule_of(name)
        assert rule is not None and line["numerics"] == rule.numerics and line["why"] == (rule.why or "matches *")
        assert line["rounding"] == ("gptq" if line["numerics"].startswith("fp8") and name in linears else "")
        if name in linears and line["numerics"] == "fp8":
            assert 1e-3 < line["rel_l2"] < 0.1
    assert said["gate"]["limits"]["step"] == limits.FP8.step and said["gate"]["faults"] == []
    ran = run(
        capfd,
        "quantize",
        *source,
        tmp_path / "again",
        "--explain",
        "--recipe",
        tmp_path / "out" / "recipe.toml",
        *QUICK,
    )
    rows = ran.out.splitlines()
    assert rows[0].split()[:2] == ["linear", "or"] and len(rows) == len(lines) + 2
    assert "transformer_blocks.3.attn1.to_q" in ran.out and "most of the work" in ran.out
    # The recipe that a bundle carries makes the bundle again.
    assert weights(tmp_path / "out") == weights(tmp_path / "again")


@pytest.mark.slow
def test_a_budget_is_kept_and_cheaper_than_the_hand_rule(source: list[Path], tmp_path: Path, capfd: Capture) -> None:
    bundle = Bundle.open(source[0])
    steps = TRIAL.record(bundle)

    def error(path: Path) -> float:
        plan = open_onnx(TRIAL.engine, path / "transformer" / "main.onnx")
        found = [plan.run({name: step.feeds[name] for name in plan.inputs})["velocity"] for step in steps]
        wanted = np.concatenate([step.velocity for step in steps])
        return float(np.linalg.norm(np.concatenate(found) - wanted) / np.linalg.norm(wanted))

    quantized(capfd, source, tmp_path / "ends", "--recipe", "int8-ends-high")
    rule = error(tmp_path / "ends")
    said = quantized(capfd, source, tmp_path / "out", "--budget", f"rel_l2<={rule}", "--explain")
    high = said["budget"]["high"]
    assert said["budget"]["rel_l2"] <= rule and error(tmp_path / "out") < 1.05 * rule
    assert 0 < len(high) < 12  # the rule keeps two blocks of six
    kept = {line["name"]: line for line in said["linears"] if line["name"] in high}
    assert all(
        line["numerics"] == "high" and "alone it makes the output differ by" in line["why"] for line in kept.values()
    )
    assert said["kept_high"] == 17 + len(high)
    quantized(capfd, source, tmp_path / "again", "--recipe", tmp_path / "out" / "recipe.toml")
    assert weights(tmp_path / "out") == weights(tmp_path / "again")


def test_a_size_is_kept(source: list[Path], tmp_path: Path, capfd: Capture) -> None:
    said = quantized(capfd, source, tmp_path / "out", "--budget", "size<=12MB")
    assert 11e6 < said["stats"]["weight_bytes"] <= 12e6 and said["budget"]["high"]


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        # A machine's time is its own: these are bounds that none and that all have.
        ("seconds<=0.00001", "; seconds<=1e-05 needs another recipe"),
        ("seconds<=1000", ", which keeps seconds<=1000; give less"),
        ("size<=1MB", "MB; size<=1MB needs another recipe"),
        ("size<=1GB", "unquantized it comes to 24.2374MB, which keeps size<=1000MB"),
    ],
)
def test_a_budget_that_says_nothing(
    budget: str, message: str, source: list[Path], tmp_path: Path, capfd: Capture
) -> None:
    ran = run(capfd, "quantize", *source, tmp_path / "no", "--budget", budget, *QUICK)
    assert ran.code == 2 and message in only_message(ran.err), ran.err
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("text", ["rel_l2<0.02", "rel_l2<=", "rel_l2<=0", "rel_l2<=5MB", "size<=1XB", "quality<=1", ""])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(BadInput, match="is none of: rel_l2<=0.02, size<=900MB .*, seconds<=1.5"):
        Budget.parse(text)


def test_budgets() -> None:
    assert Budget.parse("rel_l2<=2e-2") == Budget("rel_l2", 0.02) == Budget.parse(" rel_l2 <= 0.02 ")
    assert Budget.parse("size<=1.5GB") == Budget("size", 1.5e9) and str(Budget("size", 1.5e9)) == "size<=1500MB"
    assert Budget.parse(str(Budget("seconds", 0.25))) == Budget("seconds", 0.25)


def test_the_gate_refuses_and_nothing_is_written(
    source: list[Path], tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Quantized, "limits", replace(limits.INT8, linear=1e-4))
    ran = run(capfd, "quantize", *source, tmp_path / "out", *QUICK)
    said = only_message(ran.err)
    assert ran.code == 2 and "transformer_blocks.0.attn1.to_q: its output differs by" in said and "--no-gate" in said
    assert not (tmp_path / "out").exists()
    ran = run(capfd, "quantize", *source, tmp_path / "out", *QUICK, "--no-gate")
    assert ran.code == 0 and ran.out.rstrip().endswith("not gated")
    manifest = Bundle.open(tmp_path / "out").manifest
    assert manifest.quantization is not None and manifest.quantization["gate"] is None


def test_an_exported_bundle_says_what_it_lost(demo_bundle: BundleMaker) -> None:
    quantization = demo_bundle("t2v", "int8").manifest.quantization
    assert quantization is not None
    verdict = quantization["gate"]
    assert verdict["faults"] == [] and 0 < verdict["rel_l2"] < verdict["limits"]["step"]
    assert len(verdict["runs"]) == 8 and len(verdict["linears"]) == 53
    assert verdict["trial"]["data"] == "demo" and verdict["trial"]["seed"] == 1000
    assert quantization["method"] == {"strength": 0.8, "shift": True, "rounding": "gptq", "observer": "minmax"}


def test_strengths_are_searched_where_the_output_says(source: list[Path], tmp_path: Path) -> None:
    bundle, ranges = Bundle.open(source[0]), Ranges.load(source[1])
    few = replace(Recipe.load("int8"), rules=(Rule("transformer_blocks.5.ff.net.*", "int8"),))
    found = search_strengths(bundle, ranges, few, TRIAL.record(bundle), TRIAL.engine)
    assert {rule.match: rule.numerics for rule in found.rules[1:]} == {
        "transformer_blocks.5.ff.net.0.proj": "int8",
        "transformer_blocks.5.ff.net.2": "int8",
    }
    assert all(rule.strength in CANDIDATES for rule in found.rules[1:])
    assert Recipe.parse(found.to_toml()) == found
    with pytest.raises(BadInput, match="recipe fp8 balances no channels; give its method a strength"):
        search_strengths(bundle, ranges, Recipe.load("fp8"), [], TRIAL.engine)
