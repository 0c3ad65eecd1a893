"""GPU memory planned before work: what the manifest says of real engines, against what a replayed clip really takes."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.device_memory import StageMemory, kept_bytes
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.registry import get_engine
from reelquant.runtime.engines.tensorrt import engine as tensorrt_engine
from reelquant.runtime.engines.tensorrt.device import Device
from reelquant.runtime.engines.tensorrt.memory import clip_memory
from reelquant.runtime.errors import BadInput
from reelquant.runtime.machine.gpus import Gpus
from reelquant.runtime.models import model_of
from reelquant.runtime.models.cogvideox.stages import IMAGE, Stage, clip_stages
from reelquant.runtime.models.cogvideox.tiles import tile_count
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.request import Request
from reelquant.runtime.sizes import Size
from tests.conftest import CHECKPOINTS, BundleMaker
from tests.runtime.engines.tensorrt.replay import ReplayCuda, ReplayLoader

RTX = "tensorrt-rtx"
Opened = Callable[..., tuple[Pipeline, ReplayCuda, ReplayLoader]]


@pytest.fixture
def t2v(rtx_bundle: BundleMaker) -> Bundle:
    return rtx_bundle("t2v", "fp16")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """A pipeline on a replayed Ada GPU with so many bytes free."""

    def make(bundle: Bundle, free: int = 1 << 40, **options: Any) -> tuple[Pipeline, ReplayCuda, ReplayLoader]:
        records = bundle.manifest.engines[RTX]["engines"]
        sizes = {f"{each['component']}/{each['graph']}": each["evidence"]["activation_bytes"] for each in records}
        cuda = ReplayCuda(capacity=free)
        loader = ReplayLoader(cuda, bundle.path, sizes)
        monkeypatch.setattr(tensorrt_engine.rtx, "_devices", {0: Device(cuda, loader)})
        monkeypatch.setattr(tensorrt_engine, "gpus", lambda: Gpus(("NVIDIA L4",), "", ((8, 9),), 13000))
        return Pipeline(bundle, EngineOptions(RTX), **options), cuda, loader

    return make


def stages_of(bundle: Bundle, size: Size | None = None, tiled: bool = False) -> tuple[Stage, ...]:
    source = IMAGE if bundle.manifest.task == "i2v" else None
    return clip_stages(model_of(bundle.manifest), size or bundle.manifest.defaults.size, 2, 6, tiled, source)


def needs_of(bundle: Bundle) -> tuple[StageMemory, ...]:
    found = clip_memory(bundle.manifest, RTX, bundle.manifest.defaults.size, False, stages_of(bundle))
    assert found is not None
    return found.stages


def request_of(bundle: Bundle) -> Request:
    image = CHECKPOINTS.parent / "first_frame.png" if bundle.manifest.task == "i2v" else None
    return Request("a red circle moves right on a white background", image, seed=3, steps=2)


@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_a_clip_takes_what_was_planned(task: str, rtx_bundle: BundleMaker, opened: Opened) -> None:
    """The replay holds everything but engines' weights. What is planned is never less than that, and hardly more."""
    bundle = rtx_bundle(task, "fp16")
    stages = needs_of(bundle)
    pipeline, cuda, _ = opened(bundle, keep=True)
    for _ in range(2):
        pipeline.generate(request_of(bundle))
    planned = kept_bytes(stages) - sum(stage.weights for stage in stages)
    assert 0.97 * planned <= cuda.largest <= planned
    del pipeline
    gc.collect()
    pipeline, cuda, _ = opened(bundle, keep=False)
    pipeline.generate(request_of(bundle))
    assert 0.97 * (largest := max(stage.alone - stage.weights for stage in stages)) <= cuda.largest <= largest


def test_what_each_stage_takes_is_in_the_manifest(t2v: Bundle) -> None:
    text, transformer, decoder = needs_of(t2v)
    assert [text.name, transformer.name, decoder.name] == ["text_encoder", "transformer", "vae_decoder"]
    records = {(each["component"], each["graph"]): each for each in t2v.manifest.engines[RTX]["engines"]}
    first, later = records["vae_decoder", "first"], records["vae_decoder", "next"]
    streamed = [name for name in first["tensor_bytes"] if name.startswith("next_cache.")]
    assert decoder.caches == 2 * sum(first["tensor_bytes"][name] for name in streamed) > 0
    # Both graphs are loaded, and nine and eight frames of 96x96 in float32 come out of them.
    assert decoder.weights == first["evidence"]["engine_bytes"] + later["evidence"]["engine_bytes"]
    assert decoder.tensors == 4 * (3 * (9 + 8) * 96 * 96 + 16 * (3 + 2) * 12 * 12)
    # Latents in and velocity out, twelve such arrays that are added up between runs, a timestep, two rows of text, the rotary tables of 204 tokens.
    assert transformer.tensors == (2 + 12) * 4 * 5 * 16 * 12 * 12 + 8 + 2 * 4 * 24 * 128 + 2 * 4 * 204 * 64
    assert text.caches == transformer.caches == 0


def test_networks_are_kept_where_they_fit(t2v: Bundle, opened: Opened) -> None:
    pipeline, _, loader = opened(t2v, kept_bytes(needs_of(t2v)))
    wanted = pipeline.generate(request_of(t2v)).sha256
    once = len(loader.loaded)
    assert pipeline.generate(request_of(t2v)).sha256 == wanted
    assert len(loader.loaded) == once and pipeline.loaded == {"text_encoder", "transformer", "vae_decoder"}

    pipeline, _, loader = opened(t2v, kept_bytes(needs_of(t2v)) - 1)
    for _ in range(2):
        assert pipeline.generate(request_of(t2v)).sha256 == wanted
    assert len(loader.loaded) == 2 * once and not pipeline.loaded & {"text_encoder", "transformer"}


def test_parts_of_clips_in_turns_load_nothing_again(t2v: Bundle, opened: Opened) -> None:
    pipeline, _, loader = opened(t2v)
    loads = []
    for _ in range(3):
        pipeline.decode(pipeline.sample(request_of(t2v)))
        loads.append(len(loader.loaded))
    # The decoder was not known of at the first sampling: with it, all are loaded anew, and once.
    assert loads[1] == loads[2] and pipeline.loaded == {"text_encoder", "transformer", "vae_decoder"}


def test_what_does_not_fit_is_refused_before_anything_is_loaded(t2v: Bundle, opened: Opened) -> None:
    decoder = needs_of(t2v)[-1]
    pipeline, cuda, loader = opened(t2v, decoder.alone - 1)
    with pytest.raises(BadInput, match="does not fit on the GPU, where .* are free: vae_decoder needs") as refused:
        pipeline.generate(request_of(t2v))
    assert "what fits, by estimate: --size" in str(refused.value)
    assert (loader.loaded, cuda.held) == ([], 0)
    pipeline, _, loader = opened(t2v, kept_bytes(needs_of(t2v)) - 1, keep=True)
    with pytest.raises(BadInput, match="all stages together need .* it fits with networks loaded one at a time"):
        pipeline.generate(request_of(t2v))
    assert loader.loaded == []


def test_a_text_encoder_that_is_not_needed_need_not_fit(t2v: Bundle, opened: Opened, tmp_path: Any) -> None:
    pipeline, _, _ = opened(t2v, embeddings=tmp_path)
    request = request_of(t2v)
    wanted = pipeline.generate(request).sha256
    records = [
        {**each, "evidence": {**each["evidence"], "engine_bytes": 1 << 40}}
        if each["component"] == "text_encoder"
        else each
        for each in t2v.manifest.engines[RTX]["engines"]
    ]
    engines = {RTX: {**t2v.manifest.engines[RTX], "engines": records}}
    heavy = replace(t2v, manifest=replace(t2v.manifest, engines=engines))
    pipeline, _, loader = opened(heavy, 1 << 30, embeddings=tmp_path)
    assert pipeline.generate(request).sha256 == wanted and "text_encoder/main" not in loader.loaded
    with pytest.raises(BadInput, match="reelquant embed there, and --embeddings here"):
        pipeline.generate(replace(request, prompt="a blue square"))


def test_engines_of_an_earlier_build_are_run_without_a_plan(t2v: Bundle, opened: Opened) -> None:
    records = [
        {key: value for key, value in each.items() if key != "tensor_bytes"}
        for each in t2v.manifest.engines[RTX]["engines"]
    ]
    engines = {RTX: {**t2v.manifest.engines[RTX], "engines": records}}
    old = replace(t2v, manifest=replace(t2v.manifest, engines=engines))
    assert get_engine(RTX).clip_memory(old, old.manifest.defaults.size, False, stages_of(old)) is None
    pipeline, _, _ = opened(old)
    assert len(pipeline.generate(request_of(old)).frames) == 17


def test_smaller_clips_are_estimated_to_take_less(t2v: Bundle) -> None:
    size = t2v.manifest.defaults.size
    clip = clip_memory(t2v.manifest, RTX, size, False, stages_of(t2v))
    assert clip is not None
    ways = dict(clip.ways())
    assert next(iter(ways)) == f"--size {size} --tiled (build its engines first: --clip {size} --tiled)"
    whole, tiled = clip.stages[-1], next(iter(ways.values()))[-1]
    # Tiles are of 48x48 pixels, a quarter of the frame, in an engine for a range of them.
    assert tiled.caches == pytest.approx(1.3 * whole.caches / 4, rel=1e-6)
    takes = [max(stage.alone for stage in stages) for stages in ways.values()]
    assert takes[-1] < takes[0] < max(stage.alone for stage in clip.stages)
    for stages in ways.values():
        assert stages[0] == clip.stages[0] and stages[1].weights == clip.stages[1].weights


def test_how_often_each_graph_runs(t2v: Bundle) -> None:
    found = {stage.component: dict(stage.runs) for stage in stages_of(t2v, Size(17, 96, 96))}
    assert found == {"text_encoder": {"main": 2}, "transformer": {"main": 6}, "vae_decoder": {"first": 1, "next": 1}}
    model = model_of(t2v.manifest)
    tiled = clip_stages(model, Size(9, 96, 96), 0, 6, tiled=True, source="video")
    assert [stage.component for stage in tiled] == ["vae_encoder", "transformer", "vae_decoder"]
    latents = np.zeros((3, 16, 12, 12), np.float32)
    tiles = tile_count(latents, model.tilings())
    assert dict(tiled[-1].runs) == {"first": tiles} and tiles > 1
