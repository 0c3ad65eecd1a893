"""The TensorRT runtime without its GPU: real engines' records, buffers in host memory, and clips that are the CPU's."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.registry import get_engine
from reelquant.runtime.engines.tensorrt import engine as tensorrt_engine
from reelquant.runtime.engines.tensorrt.device import Device
from reelquant.runtime.engines.tensorrt.session import TensorRtSession
from reelquant.runtime.errors import BadInput, BundleError
from reelquant.runtime.machine.gpus import Gpus
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.relative_l2 import relative_l2
from reelquant.runtime.request import Request
from tests.conftest import CHECKPOINTS, BundleMaker
from tests.runtime.engines.tensorrt.replay import ReplayCuda, ReplayLoader
from tests.runtime.sampling.test_schedule import made as held_schedule

ADA = Gpus(("NVIDIA L4",), "", ((8, 9),), 13000)
RTX = "tensorrt-rtx"


@dataclass
class Replay:
    bundle: Bundle
    cuda: ReplayCuda
    loader: ReplayLoader
    device: Device


@pytest.fixture(params=["t2v", "i2v"])
def replay(
    request: pytest.FixtureRequest, rtx_bundle: BundleMaker, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Replay]:
    """A machine with an Ada GPU that is host memory, and a demo bundle whose engines were built for one."""
    bundle = rtx_bundle(request.param, "fp16")
    records = bundle.manifest.engines[RTX]["engines"]
    sizes = {f"{each['component']}/{each['graph']}": each["evidence"]["activation_bytes"] for each in records}
    cuda = ReplayCuda()
    loader = ReplayLoader(cuda, bundle.path, sizes)
    device = Device(cuda, loader)
    monkeypatch.setattr(tensorrt_engine.rtx, "_devices", {0: device})
    monkeypatch.setattr(tensorrt_engine, "gpus", lambda: ADA)
    yield Replay(bundle, cuda, loader, device)


def request_of(bundle: Bundle, steps: int = 3) -> Request:
    image = CHECKPOINTS.parent / "first_frame.png" if bundle.manifest.task == "i2v" else None
    return Request("a red circle moves right on a white background", image, seed=3, steps=steps)


def test_a_clip_is_the_one_that_the_cpu_renders(replay: Replay) -> None:
    wanted = Pipeline(replay.bundle, EngineOptions("openvino")).generate(request_of(replay.bundle))
    found = Pipeline(replay.bundle, EngineOptions(RTX), keep=False).generate(request_of(replay.bundle))
    difference = relative_l2(found.frames.astype(np.float32), wanted.frames.astype(np.float32))
    assert found.frames.shape == wanted.frames.shape and difference < 0.01
    # Two texts, three guided steps row by row and what comes of each, the first latents and the rest; an image's encoder once.
    runs = 2 + (2 + 1) * 3 + 1 + (found.frames.shape[0] - 9) // 8 + (replay.bundle.manifest.task == "i2v")
    assert get_engine(RTX).device_seconds() == 0.25 * runs and get_engine("openvino").device_seconds() is None


def test_memory_is_shared_and_given_back(replay: Replay) -> None:
    pipeline = Pipeline(replay.bundle, EngineOptions(RTX), keep=False)
    pipeline.generate(request_of(replay.bundle))
    del pipeline
    gc.collect()
    cuda = replay.cuda
    assert (cuda.held, replay.loader.open, len(cuda.graphs), len(cuda.events)) == (0, 0, 0, 0)
    assert replay.cuda.largest < sum(replay.loader.activation_bytes.values())
    loaded = replay.loader.loaded
    stages = ["text_encoder/main", "transformer/main", "sampling/sum", "vae_decoder/first", "vae_decoder/next"]
    assert [name for name in dict.fromkeys(loaded) if name != "vae_encoder/image"] == stages
    assert ("vae_encoder/image" in loaded) == (replay.bundle.manifest.task == "i2v")


def test_a_streams_caches_stay_on_the_device(replay: Replay) -> None:
    pipeline = Pipeline(replay.bundle, EngineOptions(RTX))
    shape = (5, 16, 12, 12)
    latents = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    before = len(replay.cuda.copies)
    frames = pipeline.decode(latents)
    copied = replay.cuda.copies[before:]
    assert len(copied) == 2 and sum(copied) == frames.size * 4  # two chunks of frames, and nothing else
    wanted = Pipeline(replay.bundle, EngineOptions("openvino")).decode(latents)
    assert relative_l2(frames.astype(np.float32), wanted.astype(np.float32)) < 0.01


def test_guidance_runs_row_by_row_and_steps_are_replayed_from_a_graph(replay: Replay) -> None:
    pipeline = Pipeline(replay.bundle, EngineOptions(RTX))
    request = request_of(replay.bundle, steps=4)
    pipeline.sample(request)
    # Of each row the first of four steps is run, the second recorded, and all from then on launched.
    transformer = replay.loader.engines[replay.loader.loaded.index("transformer/main")]
    recorded = [graph for graph in replay.cuda.graphs.values() if graph[0][0] is transformer]
    assert len(recorded) == 2 and replay.cuda.launches >= 2 * 3


def test_what_no_step_changes_goes_to_the_device_once(replay: Replay) -> None:
    """Four steps upload no more of a clip's constants than one does, and each step only timesteps and coefficients: latents stay there, and
    of each step a number comes back that says whether they are finite.
    """
    pipeline, moved = Pipeline(replay.bundle, EngineOptions(RTX)), []
    for steps in (1, 1, 4):  # the first also brings there what adds
        request = request_of(replay.bundle, steps=steps)
        pipeline.encode_prompt(request.prompt)
        before = sum(replay.cuda.uploads), sum(replay.cuda.copies)
        pipeline.sample(request)
        moved.append((sum(replay.cuda.uploads) - before[0], sum(replay.cuda.copies) - before[1]))
    ups, downs = (after - before for before, after in zip(*moved[1:], strict=True))
    assert (ups, downs) == (3 * (2 * 8 + 8 * 4), 3 * 4)


@pytest.mark.parametrize("scheduler", ["ddim", "dpm"])
@pytest.mark.parametrize("kinds", [None, "bbb-c-bb", "bb--b--b"])
def test_latents_that_stay_there_are_the_hosts(
    replay: Replay, scheduler: str, kinds: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By both schedulers, with every step computed and by a schedule whose last forecast misses, so that steps are taken again."""
    request = replace(request_of(replay.bundle, steps=8), scheduler=scheduler, guidance=6.0)
    if kinds is not None:
        schedule = held_schedule(replay.bundle, kinds, request=request)
        last = kinds.rindex("b")
        request = replace(
            request, schedule=replace(schedule, bounds=(*schedule.bounds[:last], 1e-6, *schedule.bounds[last + 1 :]))
        )
    found = Pipeline(replay.bundle, EngineOptions(RTX)).sample(request)
    monkeypatch.setattr(TensorRtSession, "adder", lambda self, shape: None)
    assert relative_l2(found, Pipeline(replay.bundle, EngineOptions(RTX)).sample(request)) < 1e-5
    assert "sampling/sum" in replay.loader.loaded


def test_a_bundle_that_was_built_before_adds_on_the_host(replay: Replay) -> None:
    built = replay.bundle.manifest.engines[RTX]
    records = [each for each in built["engines"] if each["component"] != "sampling"]
    engines = {RTX: {**built, "engines": records}}
    old = Bundle(replay.bundle.path, replace(replay.bundle.manifest, engines=engines))
    found = Pipeline(old, EngineOptions(RTX)).sample(request_of(old))
    assert "sampling/sum" not in replay.loader.loaded
    assert relative_l2(found, Pipeline(replay.bundle, EngineOptions(RTX)).sample(request_of(old))) < 1e-5


def test_another_size_is_refused_with_what_was_built(replay: Replay) -> None:
    pipeline = Pipeline(replay.bundle, EngineOptions(RTX))
    request = Request(
        request_of(replay.bundle).prompt, request_of(replay.bundle).image, seed=1, steps=1, height=64, width=64
    )
    with pytest.raises(BadInput, match="no engine was built for this size .* reelquant build BUNDLE --clip"):
        pipeline.sample(request)
    assert replay.loader.loaded == []


@pytest.mark.parametrize(
    ("here", "reason"),
    [
        (Gpus((), "no NVIDIA driver (libcuda.so.1 is not there)"), "no NVIDIA driver"),
        (Gpus(("NVIDIA A10",), "", ((8, 6),), 13000), r"built for sm89, sm120, and this GPU is a NVIDIA A10 \(sm86\)"),
    ],
)
def test_an_engine_that_cannot_run_here_is_not_tried(
    replay: Replay, here: Gpus, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_engine, "gpus", lambda: here)
    with pytest.raises(BadInput, match=reason):
        Pipeline(replay.bundle, EngineOptions(RTX)).generate(request_of(replay.bundle))
    assert replay.loader.loaded == []


def test_a_changed_engine_is_not_loaded(replay: Replay) -> None:
    name = next(name for name in replay.bundle.manifest.files if name.endswith(".engine") and "transformer" in name)
    file = replay.bundle.path / name
    data = file.read_bytes()
    file.unlink()  # it may have another name in the cache
    try:
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(BundleError, match="was changed after export"):
            Pipeline(replay.bundle, EngineOptions(RTX)).generate(request_of(replay.bundle))
        assert "transformer/main" not in replay.loader.loaded
    finally:
        file.write_bytes(data)
