"""Real TensorRT-RTX engines, built without a GPU: the demo's, with their evidence, cache, plan and refusals."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.options import BuildSpec
from reelquant.runtime.engines.tensorrt import builder, stage
from reelquant.runtime.engines.tensorrt import engine as tensorrt_engine
from reelquant.runtime.engines.tensorrt.builder import build_engine
from reelquant.runtime.engines.tensorrt.flavor import RTX, Flavor
from reelquant.runtime.engines.tensorrt.memory import clip_memory
from reelquant.runtime.engines.tensorrt.shapes import Profile
from reelquant.runtime.engines.tensorrt.stage import build_engines, jobs, plan
from reelquant.runtime.errors import BadInput, BundleError, MissingExtra
from reelquant.runtime.machine.gpus import Gpus
from reelquant.runtime.models import model_of
from reelquant.runtime.models.cogvideox.stages import clip_stages
from reelquant.runtime.sizes import Size
from tests.command_line import contents, only_message, run
from tests.conftest import BundleMaker

ADA = ("sm89",)


@pytest.fixture
def fp8(rtx_bundle: BundleMaker, tmp_path: Path) -> Bundle:
    """The demo in FP8 with its engines, to build others into."""
    shutil.copytree(rtx_bundle("t2v", "fp8").path, tmp_path / "fp8")
    return Bundle.open(tmp_path / "fp8")


@pytest.mark.parametrize("task", ["t2v", "i2v"])
@pytest.mark.parametrize("precision", ["fp16", "fp8"])
def test_every_component_of_the_demo_is_built_with_evidence(task: str, precision: str, rtx_bundle: BundleMaker) -> None:
    bundle = rtx_bundle(task, precision)
    record = bundle.manifest.engines["tensorrt-rtx"]
    built = {f"{each['component']}/{each['graph']}": each for each in record["engines"]}
    graphs = {f"{name}/{graph}" for name, part in bundle.manifest.components.items() for graph in part.graphs}
    assert built.keys() == {*graphs, "sampling/sum"} and bundle.manifest.base == "fp16"
    for name, each in built.items():
        component, graph = name.split("/")
        part = bundle.manifest.components.get(component)
        stored = part.stats[graph]["weight_bytes"] if part else 0  # what adds has none
        found = each["evidence"]
        assert (found["activation_bytes"] > 0) == (component != "sampling") and found["build_seconds"] > 0
        assert found["engine_bytes"] == (bundle.path / each["file"]).stat().st_size
        assert found["weight_bytes"] <= 1.1 * stored + (4 << 20)
    assert bundle.verify() == len(bundle.manifest.files)


@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_fp8_shrinks_the_transformers_weights(task: str, rtx_bundle: BundleMaker) -> None:
    weights = {}
    for precision in ("fp16", "fp8"):
        records = rtx_bundle(task, precision).manifest.engines["tensorrt-rtx"]["engines"]
        (transformer,) = (each for each in records if each["component"] == "transformer")
        weights[precision] = transformer["evidence"]["weight_bytes"]
    assert weights["fp8"] < 0.6 * weights["fp16"]
    stats = rtx_bundle(task, "fp8").manifest.components["transformer"].stats["main"]
    assert (stats["quantized_linears"], stats["weight_only_linears"], stats["quantized_attentions"]) == (36, 12, 6)


@pytest.mark.parametrize(("precision", "share"), [("int8", 0.65), ("int4-weight", 0.4)])
def test_balanced_int8_and_int4_weights_are_built(precision: str, share: float, rtx_bundle: BundleMaker) -> None:
    """What balancing puts before Q keeps no product from fusing: the weights stay in 8 bit."""
    found = {}
    for name in ("fp16", precision):
        records = rtx_bundle("t2v", name).manifest.engines["tensorrt-rtx"]["engines"]
        (found[name],) = (each["evidence"] for each in records if each["component"] == "transformer")
    assert found[precision]["weight_bytes"] < share * found["fp16"]["weight_bytes"]


def test_nvfp4_is_built_for_blackwell_at_one_size(
    rtx_bundle: BundleMaker, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = rtx_bundle("t2v", "nvfp4")
    records = bundle.manifest.engines["tensorrt-rtx"]["engines"]
    (transformer,) = (each for each in records if each["component"] == "transformer")
    whole = next(
        e
        for e in rtx_bundle("t2v", "fp16").manifest.engines["tensorrt-rtx"]["engines"]
        if e["component"] == "transformer"
    )
    assert transformer["evidence"]["weight_bytes"] < 0.4 * whole["evidence"]["weight_bytes"]
    assert bundle.manifest.components["transformer"].stats["main"]["quantized_linears"] == 36

    shutil.copytree(bundle.path, tmp_path / "nvfp4")
    build = (
        "build",
        tmp_path / "nvfp4",
        "--engine",
        "tensorrt-rtx",
        "--cache",
        tmp_path / "cache",
        "--clip",
        "9x32x32",
    )
    other = run(capfd, *build, "--gpu", "sm120")
    assert other.code == 0 and "8 graphs ready" in other.out
    dynamic = run(capfd, *build, "--gpu", "sm120", "--clip", "9x32x48", "--dynamic")
    assert dynamic.code == 2 and "NVFP4 graphs for one size at a time" in only_message(dynamic.err)
    ada = run(capfd, *build, "--gpu", "sm89")
    assert ada.code == 2 and "sm89 (Ada: L4, L40S, RTX 40) has no nvfp4" in only_message(ada.err)
    with (
        monkeypatch.context() as without,
        pytest.raises(MissingExtra, match="building a graph for one size at a time needs onnx-ir"),
    ):
        without.setitem(sys.modules, "onnx_ir", None)
        for name in [name for name in sys.modules if name.startswith("reelquant.quant.")]:
            without.delitem(sys.modules, name)
        jobs(bundle, RTX, BuildSpec(gpus=("sm120",)))
    cpu = run(capfd, "generate", bundle.path, "a circle", "--engine", "openvino", "-o", tmp_path / "clip.mp4")
    assert cpu.code == 2 and "computes in NVFP4, which TensorRT alone takes" in only_message(cpu.err)


def test_a_second_build_takes_the_cache_and_a_plan_says_so(fp8: Bundle, tmp_path: Path) -> None:
    small = BuildSpec((Size(9, 32, 32),), gpus=ADA, cache=tmp_path / "cache")
    before = {entry.graph: (entry.state, entry.why) for entry in plan(fp8, RTX, small)}
    assert {state for state, _ in before.values()} == {"stale"}
    assert all("targets" in why for _, why in before.values()) and "profile" in before["vae_decoder/next"][1]
    built = build_engines(fp8, RTX, small)
    assert {entry.state for entry in plan(built, RTX, small)} == {"current"}
    records = built.manifest.engines["tensorrt-rtx"]["engines"]
    assert not any(each["from_cache"] for each in records)
    assert built.verify() == len(built.manifest.files)  # the engines that were there before are gone
    other = BuildSpec((Size(9, 32, 48),), gpus=ADA, cache=tmp_path / "cache")
    states = {entry.graph: entry.state for entry in plan(built, RTX, other)}
    assert states["text_encoder/main"] == "current" and states["transformer/main"] == "stale"

    again = build_engines(build_engines(built, RTX, other), RTX, small)
    assert all(each["from_cache"] for each in again.manifest.engines["tensorrt-rtx"]["engines"])


def test_sizes_share_what_does_not_depend_on_them(fp8: Bundle) -> None:
    sizes = (Size(9, 32, 32), Size(17, 32, 32), Size(9, 32, 48))
    names = [job.name for job in jobs(fp8, RTX, BuildSpec(sizes, gpus=ADA))]
    assert names.count("text_encoder/main") == 1
    assert names.count("transformer/main") == 3
    assert names.count("vae_decoder/first") == 2  # the VAE takes clips of any length
    dynamic = jobs(fp8, RTX, BuildSpec(sizes, dynamic=True, gpus=ADA))
    assert len(dynamic) == 8
    (transformer,) = (job for job in dynamic if job.component == "transformer")
    assert (transformer.profile.least["latent_frames"], transformer.profile.most["latent_frames"]) == (3, 5)


def test_one_dynamic_engine_serves_all_sizes_between(fp8: Bundle, tmp_path: Path) -> None:
    wanted = BuildSpec((Size(9, 32, 32), Size(17, 64, 64)), dynamic=True, gpus=ADA, cache=tmp_path / "cache")
    built = build_engines(fp8, RTX, wanted)
    records = built.manifest.engines["tensorrt-rtx"]["engines"]
    (decoder,) = (each for each in records if (each["component"], each["graph"]) == ("vae_decoder", "next"))
    assert decoder["inputs"]["latents"] == [[1, 16, 2, 4, 4], [1, 16, 2, 8, 8]]
    # Every cache's profile follows its latent.
    assert decoder["inputs"]["cache.conv_out"] == [[1, 16, 2, 32, 32], [1, 16, 2, 64, 64]]
    # What goes in and out is known at the most, and so is about what a smaller clip takes.
    assert decoder["tensor_bytes"]["frames"] == 4 * 3 * 8 * 64 * 64
    assert (
        decoder["tensor_bytes"]["next_cache.conv_out"]
        == decoder["tensor_bytes"]["cache.conv_out"]
        == 2 * 16 * 2 * 64 * 64
    )
    model, takes = model_of(built.manifest), []
    for size in (Size(17, 64, 64), Size(17, 32, 32)):
        clip = clip_memory(built.manifest, "tensorrt-rtx", size, False, clip_stages(model, size))
        assert clip is not None
        takes.append(clip.stages[-1])
    assert takes[1].caches == pytest.approx(takes[0].caches / 4, rel=0.01) and takes[1].weights == takes[0].weights
    with pytest.raises(BadInput, match=r"no engine was built for this size \(17x96x96"):
        clip_memory(built.manifest, "tensorrt-rtx", Size(17, 96, 96), False, clip_stages(model, Size(17, 96, 96)))


def test_an_impossible_size_is_refused_before_any_work(fp8: Bundle) -> None:
    with pytest.raises(BadInput, match="height 33 is not a positive multiple of 16"):
        build_engines(fp8, RTX, BuildSpec((Size(9, 33, 32),), gpus=ADA))


def test_a_build_that_ends_early_leaves_the_bundle_and_goes_on_where_it_was(
    fp8: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = BuildSpec((Size(9, 32, 32),), gpus=ADA, cache=tmp_path / "cache")
    done: list[Path] = []

    def build_two(flavor: Flavor, graph: Path, *more: Any) -> builder.Built:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(graph)
        return build_engine(flavor, graph, *more)

    before = contents(fp8.path)
    monkeypatch.setattr(stage, "build_engine", build_two)
    with pytest.raises(KeyboardInterrupt):
        build_engines(fp8, RTX, wanted)
    assert contents(fp8.path) == before and fp8.verify() == len(fp8.manifest.files)
    monkeypatch.undo()
    states = [entry.state for entry in plan(fp8, RTX, wanted)]
    assert sorted(states) == ["cached"] * 2 + ["stale"] * 6
    records = build_engines(fp8, RTX, wanted).manifest.engines["tensorrt-rtx"]["engines"]
    assert sum(each["from_cache"] for each in records) == 2


def test_a_disk_that_is_full_at_the_end_leaves_the_bundle(
    fp8: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(fp8.path)

    def full(*_: Any) -> None:
        raise BadInput("the disk is full")

    monkeypatch.setattr(stage, "_record", full)
    with pytest.raises(BadInput, match="the disk is full"):
        build_engines(fp8, RTX, BuildSpec((Size(9, 32, 32),), gpus=ADA, cache=tmp_path / "cache"))
    assert contents(fp8.path) == before


def test_a_build_can_be_stopped(fp8: Bundle) -> None:
    heard: list[tuple[str, int, int]] = []

    def step(phase: str, done: int, total: int) -> bool:
        heard.append((phase, done, total))
        return False

    symbols = {"batch": 1, "latent_frames": 3, "height": 4, "width": 4, "tokens": 24 + 12}
    with pytest.raises(KeyboardInterrupt):
        build_engine(RTX, fp8.graph("transformer", "main"), Profile.static(symbols), BuildSpec(gpus=ADA), step)
    assert heard and heard[0][1] == 1 and heard[0][2] > 1


def test_what_the_parser_refuses_is_said_with_its_node(tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"not onnx")
    with pytest.raises(BundleError, match="tensorrt-rtx .* cannot read .*graph.onnx"):
        build_engine(RTX, tmp_path / "graph.onnx", Profile.static({}), BuildSpec(gpus=ADA))


def test_the_command_line(fp8: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    build = ("build", fp8.path, "--engine", "tensorrt-rtx", "--cache", tmp_path / "cache", "--clip", "9x32x32")
    planned = run(capfd, *build, "--gpu", "sm89", "--plan", "--json")
    assert planned.code == 0 and len(json.loads(planned.out)["engines"]) == 8
    built = run(capfd, *build, "--gpu", "sm89", "--json")
    assert built.code == 0 and json.loads(built.out)["targets"] == ["sm89"]
    again = run(capfd, *build, "--gpu", "sm89")
    assert again.code == 0 and again.out.count("from the cache") == 8 and "attention too small to tell" in again.out

    found = run(capfd, "lint", fp8.path, "--gpu", "sm86", "--json")
    assert found.code == 1 and json.loads(found.out)["transformer/main"][0]["rule"] == "gpu-format"
    clean = run(capfd, "lint", fp8.path, "--gpu", "sm89")
    assert clean.code == 0 and "no findings" in clean.out


def test_the_doctor_says_why_a_bundles_engines_do_not_load(
    rtx_bundle: BundleMaker, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = rtx_bundle("t2v", "fp16")
    for here, said in (
        (
            Gpus((), "no NVIDIA driver (libcuda.so.1 is not there)"),
            "does not run here on tensorrt-rtx: no NVIDIA driver",
        ),
        (
            Gpus(("NVIDIA A10",), "", ((8, 6),)),
            "does not run here on tensorrt-rtx: its engines were built for sm89, sm120, and this GPU is",
        ),
        (Gpus(("NVIDIA L4",), "", ((8, 9),)), f"{bundle.path} runs here on tensorrt-rtx"),
    ):
        monkeypatch.setattr(tensorrt_engine, "gpus", lambda here=here: here)
        ran = run(capfd, "doctor", bundle.path)
        assert ran.code == 0 and said in ran.out
        assert json.loads(run(capfd, "doctor", bundle.path, "--json").out)["bundle"].keys() == {"tensorrt-rtx"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpu", "sm86"), "has no fp8; sm89 and newer do"),
        (("--gpu", "sm90"), "does not build for 'sm90'; one of sm75"),
        ((), "there is no NVIDIA driver"),
        (("--gpu", "sm89", "--clip", "9x33x32"), "height 33 is not a positive multiple of 16"),
        (("--gpu", "sm89", "--clip", "big"), "size 'big' is not FRAMESxHEIGHTxWIDTH"),
    ],
)
def test_bad_choices_end_with_a_message(
    arguments: tuple[str, ...], message: str, fp8: Bundle, capfd: pytest.CaptureFixture[str]
) -> None:
    ran = run(capfd, "build", fp8.path, "--engine", "tensorrt-rtx", *arguments)
    assert ran.code == 2 and message in only_message(ran.err)


def test_the_fp8_that_the_lint_refuses_is_refused_by_the_builder(fp8: Bundle) -> None:
    symbols = {"batch": 1, "latent_frames": 3, "height": 4, "width": 4, "tokens": 24 + 12}
    for name in ("sm80", "sm86"):
        with pytest.raises(BundleError, match="model contains HW-specific datatypes: fp8_e4m3"):
            build_engine(RTX, fp8.graph("transformer", "main"), Profile.static(symbols), BuildSpec(gpus=(name,)))
