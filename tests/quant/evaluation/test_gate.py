"""The gate on the demo: good bundles pass, and every planted fault is caught where it was planted."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from reelquant.quant.calibration.calibrate import calibrate
from reelquant.quant.calibration.data import CalibrationData
from reelquant.quant.calibration.plan import CalibrationPlan
from reelquant.quant.calibration.ranges import Ranges
from reelquant.quant.evaluation.gate import Verdict, gate
from reelquant.quant.evaluation.teacher import Difference, Step, Trial, record_steps
from reelquant.quant.graph.graph_files import load_graph, load_mapped, save_graphs
from reelquant.quant.graph.graph_stats import graph_stats
from reelquant.quant.graph.linears import Linear, linear_nodes, quantized_source
from reelquant.quant.methods.method import Method
from reelquant.quant.quantize import quantize_bundle
from reelquant.quant.recipe import Recipe, Rule, built_in_recipes
from reelquant.runtime.bundle import Bundle, list_files, write_manifest
from reelquant.runtime.engines.engine import REFERENCE_ENGINE
from reelquant.runtime.errors import BadInput
from tests.command_line import run
from tests.conftest import BUILD, BundleMaker, TinyBundleMaker
from tests.tiny_bundle import RECIPE

ENGINE = "openvino"
Spoil = Callable[[ir.Model], None]
Steps = Callable[[str], Sequence[Step]]
ANYWHERE = "transformer_blocks.3.attn1.to_q"


@pytest.fixture(scope="module")
def steps(demo_bundle: BundleMaker) -> Steps:
    @cache
    def record(task: str) -> Sequence[Step]:
        data = CalibrationData.load("demo")
        requests = data.requests(task, prompts=2, seed=1000, steps=2)
        return record_steps(demo_bundle(task, "fp32"), requests, ENGINE)

    return record


def judged(bundle: Bundle, reference: Bundle, steps: Sequence[Step]) -> Verdict:
    return gate(bundle, reference, steps, ENGINE)


PRECISIONS = ["int8", "fp8", "int8-minmax", "int4-weight", "fp16"]
GOOD = [("t2v", precision) for precision in PRECISIONS] + [("i2v", "int8"), ("i2v", "fp8")]
MORE = [pytest.param("i2v", precision, marks=pytest.mark.slow) for precision in PRECISIONS[2:]]


@pytest.mark.parametrize(("task", "precision"), [*GOOD, *MORE])
def test_good_bundles_pass(
    task: str, precision: str, demo_bundle: BundleMaker, rtx_bundle: BundleMaker, steps: Steps
) -> None:
    bundle = (rtx_bundle if precision == "fp16" else demo_bundle)(task, precision)
    verdict = judged(bundle, demo_bundle(task, "fp32"), steps(task))
    assert verdict.faults == () and verdict.worst.finite
    assert verdict.worst.rel_l2 < 0.5 * verdict.limits.step  # and not by a hair


def spoiled(bundle: Bundle, spoil: Spoil, folder: Path) -> Bundle:
    """``bundle`` with its transformer's graph changed by ``spoil``, and a manifest that vouches for it."""
    model = load_mapped(bundle.graph("transformer", "main"))
    spoil(model)
    bundle.copy_files(folder, lambda name: not name.startswith(("transformer/", "engines/")))
    files = save_graphs(folder / "transformer", {"main": model})
    part = replace(
        bundle.manifest.components["transformer"],
        stats={"main": graph_stats(load_graph(folder / files["main"]))},
    )
    components = {**bundle.manifest.components, "transformer": part}
    write_manifest(folder, replace(bundle.manifest, components=components, engines={}, files=list_files(folder)))
    return Bundle.open(folder)


def linear(model: ir.Model, name: str = ANYWHERE) -> Linear:
    return next(each for each in linear_nodes(model) if each.name == name)


def quantizer(model: ir.Model, name: str) -> ir.Node:
    """The QuantizeLinear of a linear's activation."""
    source = quantized_source(linear(model, name).node.inputs[0])
    producer = source.producer() if source is not None else None
    assert producer is not None
    return producer


def set_value(model: ir.Model, name: str, change: Callable[[Any], Any]) -> None:
    value = model.graph.initializers[name]
    assert value.const_value is not None
    array = value.const_value.numpy()
    value.const_value = ir.tensor(np.asarray(change(array)).astype(array.dtype), name=name)


def activation_scale(factor: float, name: str = ANYWHERE) -> Spoil:
    def spoil(model: ir.Model) -> None:
        scale = quantizer(model, name).inputs[1]
        assert scale is not None
        set_value(model, scale.name or "", lambda array: array * factor)

    return spoil


def weight_scale(factor: float, name: str = ANYWHERE) -> Spoil:
    def spoil(model: ir.Model) -> None:
        again = linear(model, name).node.inputs[1]
        producer = again.producer() if again is not None else None
        assert producer is not None and producer.inputs[1] is not None
        set_value(model, producer.inputs[1].name or "", lambda array: array * factor)

    return spoil


def stored(change: Callable[[Any], Any], name: str = ANYWHERE) -> Spoil:
    return lambda model: set_value(model, linear(model, name).weight, change)


def bias(change: Callable[[Any], Any], name: str = ANYWHERE) -> Spoil:
    return lambda model: set_value(model, f"{name}.bias", change)


def balance(part: str, change: Callable[[Any], Any], name: str = "transformer_blocks.3.ff.net.0.proj") -> Spoil:
    """The factor or summand that stands before a linear's QuantizeLinear."""

    def spoil(model: ir.Model) -> None:
        read = linear(model, name).activation.removesuffix("_shifted")
        set_value(model, f"{read}_{part}", change)

    return spoil


def skipped_half(model: ir.Model) -> None:
    """Block 2's feed-forward adds nothing to the residual stream."""
    set_value(model, linear(model, "transformer_blocks.2.ff.net.2").weight, np.zeros_like)
    set_value(model, "transformer_blocks.2.ff.net.2.bias", np.zeros_like)


def swapped(model: ir.Model) -> None:
    """A linear reads what was quantized for that of the block before."""
    linear(model).node.replace_input_with(0, linear(model, "transformer_blocks.2.attn1.to_q").node.inputs[0])


def weights_exchanged(model: ir.Model) -> None:
    one, two = (
        model.graph.initializers[linear(model, f"transformer_blocks.3.attn1.{name}").weight]
        for name in ("to_k", "to_v")
    )
    assert one.const_value is not None and two.const_value is not None
    a, b = one.const_value.numpy().copy(), two.const_value.numpy().copy()
    set_value(model, one.name or "", lambda _: b)
    set_value(model, two.name or "", lambda _: a)


FAULTS: dict[str, tuple[Spoil, str]] = {
    "an activation's scale eight times too large": (activation_scale(8), ANYWHERE),
    "an activation's scale eight times too small": (activation_scale(1 / 8), ANYWHERE),
    "a weight's scale eight times too large": (weight_scale(8), ANYWHERE),
    "a weight's scale eight times too small": (weight_scale(1 / 8), ANYWHERE),
    "a scale that is NaN": (weight_scale(np.nan), ANYWHERE),
    "a NaN in a bias": (bias(lambda b: np.where(np.arange(len(b)) == 7, np.nan, b)), "transformer_blocks.3"),
    "a bias of zeros": (bias(np.zeros_like, "transformer_blocks.2.norm1.linear"), "transformer_blocks.2.norm1.linear"),
    "a weight of zeros": (stored(np.zeros_like), ANYWHERE),
    "a weight transposed": (stored(lambda w: w.T.copy()), ANYWHERE),
    "a weight negated": (stored(lambda w: -w), ANYWHERE),
    "a weight shifted by a column": (stored(lambda w: np.roll(w, 1, 1)), ANYWHERE),
    "half a weight lost": (stored(lambda w: np.where(np.arange(len(w))[:, None] < len(w) // 2, w, 0)), ANYWHERE),
    "half a block skipped": (skipped_half, "transformer_blocks.2.ff.net.2"),
    "another activation's Q/DQ": (swapped, ANYWHERE),
    "a balance that is lost": (balance("balance", np.ones_like), "transformer_blocks.3.ff.net.0.proj"),
    "a balance inverted": (balance("balance", lambda b: 1 / b), "transformer_blocks.3.ff.net.0.proj"),
    "a shift that is lost": (balance("shift", np.zeros_like), "transformer_blocks.3.ff.net.0.proj"),
    "the weights of K and V exchanged": (weights_exchanged, "transformer_blocks.3.attn1.to_k"),
}


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *((name, "int8") for name in FAULTS),
        *((name, "fp8") for name in FAULTS if "activation" in name or "half" in name),
    ],
)
def test_a_planted_fault_is_caught_where_it_is(
    name: str, precision: str, demo_bundle: BundleMaker, steps: Steps, tmp_path: Path
) -> None:
    spoil, where = FAULTS[name]
    bundle = spoiled(demo_bundle("t2v", precision), spoil, tmp_path / "spoiled")
    verdict = gate(bundle, demo_bundle("t2v", "fp32"), steps("t2v")[1:2], REFERENCE_ENGINE)
    assert verdict.faults and verdict.faults[0].where.startswith(where), verdict


def test_a_bundle_that_is_not_quantized_is_caught(demo_bundle: BundleMaker, steps: Steps, tmp_path: Path) -> None:
    """Its manifest says INT8, and every Q/DQ was removed."""

    def undo(model: ir.Model) -> None:
        reference = load_mapped(demo_bundle("t2v", "fp32").graph("transformer", "main"))
        values = {value.name: value for node in model.graph for value in node.outputs}
        for each, exact in zip(linear_nodes(model), linear_nodes(reference), strict=True):
            if exact.weight in model.graph.initializers:
                continue
            again = ir.val(exact.weight, const_value=reference.graph.initializers[exact.weight].const_value)
            model.graph.register_initializer(again)
            each.node.replace_input_with(1, again)
            each.node.replace_input_with(0, values[exact.activation])
            bias = f"{each.name}.bias"
            model.graph.initializers[bias].const_value = reference.graph.initializers[bias].const_value

    bundle = spoiled(demo_bundle("t2v", "int8"), undo, tmp_path / "undone")
    verdict = judged(bundle, demo_bundle("t2v", "fp32"), steps("t2v"))
    assert [fault.where for fault in verdict.faults] == ["transformer"]
    assert "nothing was quantized" in str(verdict.faults[0])


def test_a_stranger_is_no_twin(demo_bundle: BundleMaker, steps: Steps) -> None:
    with pytest.raises(BadInput, match="is fp32, which loses nothing; give a quantized bundle"):
        judged(demo_bundle("t2v", "fp32"), demo_bundle("t2v", "fp32"), steps("t2v"))
    with pytest.raises(BadInput, match="are not of one model; give the fp32 bundle that it was made from"):
        judged(demo_bundle("i2v", "int8"), demo_bundle("t2v", "fp32"), steps("t2v"))


def test_differences() -> None:
    one = np.array([3.0, 4.0])
    assert Difference.of(one, one) == Difference(0.0, 1.0)
    assert Difference.of(-one, one) == Difference(2.0, -1.0)
    assert not Difference.of(np.array([np.inf, 1]), one).finite and not Difference.of(np.array([np.nan, 1]), one).finite
    assert Difference.of(np.zeros(2), one).rel_l2 == 1


def test_the_command_line(demo_bundle: BundleMaker, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reference, quick = demo_bundle("t2v", "fp32").path, ("--data", "demo", "--prompts", "1", "--steps", "2")
    good = run(capfd, "gate", demo_bundle("t2v", "int8").path, reference, *quick)
    assert good.code == 0 and "passed; relative L2 0.0" in good.out
    bundle = spoiled(demo_bundle("t2v", "int8"), weight_scale(8), tmp_path / "spoiled")
    bad = run(capfd, "gate", bundle.path, reference, *quick, "--json")
    said = json.loads(bad.out)
    assert bad.code == 1 and said["faults"][0]["where"] == ANYWHERE
    assert len(said["runs"]) == 2 and said["rel_l2"] == max(run["rel_l2"] for run in said["runs"])
    high = run(capfd, "gate", bundle.path, bundle.path, *quick)
    assert high.code == 2 and "is int8; give the fp32 bundle that" in high.err


def good_recipes() -> list[Recipe]:
    """27 ways to quantize well: every recipe that comes along, and every kind of method."""
    made = [Recipe.load(name) for name in built_in_recipes() if Recipe.load(name).judged]
    int8, fp8 = Recipe.load("int8"), Recipe.load("fp8")
    for strength in (None, 0.5, 0.9):
        for shift in (True, False):
            for rounding in ("nearest", "gptq"):
                made.append(replace(int8, name="int8", method=Method(strength, shift, rounding)))
    made += [replace(int8, method=Method(observer=observer)) for observer in ("percentile", "mse")]
    made += [replace(fp8, method=Method(observer=observer, rounding="gptq")) for observer in ("percentile", "mse")]
    rules = (Rule("transformer_blocks.*.attn1.to_*", "fp8_per_channel"), Rule("*.ff.net.*", "fp8_per_channel"))
    return [*made, replace(fp8, rules=rules)]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_no_good_bundle_of_fifty_is_refused(task: str, demo_bundle: BundleMaker, steps: Steps, tmp_path: Path) -> None:
    demo_bundle(task, "int8")
    fp32, ranges = demo_bundle(task, "fp32"), Ranges.load(BUILD / f"work-{task}" / "ranges")
    recipes = good_recipes()
    assert len(recipes) == 27
    for number, recipe in enumerate(recipes):
        bundle = quantize_bundle(fp32, ranges, recipe, tmp_path / str(number))
        verdict = judged(bundle, fp32, steps(task)[1:3])
        assert verdict.faults == (), (recipe.name, recipe.method, verdict.faults)


def test_a_linear_that_only_sees_zeros_is_dead_and_no_fault(tiny_bundle: TinyBundleMaker, tmp_path: Path) -> None:
    """Pruned: here the text that the one quantized linear reads. Any scale would do for it."""
    source = tiny_bundle("t2v")
    model = load_mapped(source.graph("text_encoder", "main"))
    set_value(model, "table", np.zeros_like)
    source.copy_files(tmp_path / "pruned", lambda name: not name.startswith("text_encoder/"))
    save_graphs(tmp_path / "pruned" / "text_encoder", {"main": model})
    write_manifest(tmp_path / "pruned", replace(source.manifest, files=list_files(tmp_path / "pruned")))
    pruned = Bundle.open(tmp_path / "pruned")
    ranges = calibrate(pruned, CalibrationData.load("demo"), CalibrationPlan(prompts=1, steps=2))
    trial = Trial("demo", prompts=1, steps=2)
    for name, rules in (
        ("tiny", RECIPE),
        ("balanced", RECIPE + 'method = { strength = 0.8, shift = true, rounding = "gptq" }'),
    ):
        made = quantize_bundle(pruned, ranges, Recipe.parse(rules), tmp_path / name, trial=trial)
        assert made.manifest.quantization is not None
        verdict = made.manifest.quantization["gate"]
        assert verdict["faults"] == [] and verdict["dead"] == ["transformer_blocks.0.attn1.to_q"]
