"""A pipeline as a program uses it: followed, cancelled, shared by threads, and its frames taken while they are decoded."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reelquant.runtime.errors import BadInput, Cancelled
from reelquant.runtime.monitor import Monitor
from reelquant.runtime.pipeline import Pipeline, load_pipeline
from reelquant.runtime.request import Request
from reelquant.runtime.sampling.latents import SavedLatents
from tests.conftest import TinyBundleMaker

PROMPT = "a red circle moves right on a white background"
REQUEST = Request(PROMPT, seed=3, steps=3, frames=17)


@pytest.fixture
def t2v(tiny_bundle: TinyBundleMaker) -> Pipeline:
    return load_pipeline(tiny_bundle("t2v").path)


def test_a_clip_has_its_own_seconds(t2v: Pipeline) -> None:
    t2v.generate(REQUEST)
    began = time.monotonic()
    clip = t2v.generate(REQUEST)
    assert {"text", "denoise", "decode"} <= clip.seconds.keys()
    assert 0 < sum(clip.seconds.values()) <= time.monotonic() - began  # of this clip alone
    assert "seconds" not in clip.provenance  # which would make every file another


def test_every_step_is_heard(t2v: Pipeline) -> None:
    heard: list[tuple[str, int, int]] = []
    t2v.generate(REQUEST, on_step=lambda *step: heard.append(step))
    steps = [("denoise", i + 1, 3) for i in range(3)]
    assert heard == [("text", 1, 2), ("text", 2, 2), *steps, ("decode", 1, 2), ("decode", 2, 2)]


@pytest.mark.parametrize("stage", ["text", "denoise", "decode"])
def test_a_clip_can_be_cancelled_and_the_next_is_made(t2v: Pipeline, stage: str) -> None:
    def stop(at: str, done: int, total: int) -> None:
        if (at, done) == (stage, 1):
            raise Cancelled("the user has gone")

    wanted = t2v.generate(REQUEST).sha256
    with pytest.raises(Cancelled, match="the user has gone"):
        t2v.generate(REQUEST, on_step=stop)
    assert t2v.generate(REQUEST).sha256 == wanted


def test_frames_come_while_others_are_decoded(t2v: Pipeline) -> None:
    latents = t2v.sample(REQUEST)
    decoded: list[int] = []
    monitor = Monitor(on_step=lambda stage, done, total: decoded.append(done))
    frames: Iterator[np.ndarray] = t2v.iter_frames(latents, monitor)
    chunks = [next(frames)]
    assert decoded == [1] and len(chunks[0]) == 9
    chunks += frames
    assert decoded == [1, 2] and np.array_equal(np.concatenate(chunks), t2v.decode(latents))


def test_an_iterator_that_is_closed_lets_others_in(t2v: Pipeline) -> None:
    frames = t2v.iter_frames(t2v.sample(REQUEST))
    next(frames)
    frames.close()  # type: ignore[attr-defined]
    t2v.generate(REQUEST)


def test_threads_share_a_pipeline(t2v: Pipeline) -> None:
    requests = [Request(PROMPT, seed=seed, steps=2, frames=9) for seed in (1, 2, 1, 2)]
    alone = [t2v.generate(request).sha256 for request in requests[:2]]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda request: t2v.generate(request).sha256, requests))
    assert together == alone * 2


def test_what_is_resolved_is_not_resolved_again(t2v: Pipeline) -> None:
    resolved = t2v.resolve(Request(PROMPT))  # whose seed is drawn
    assert t2v.resolve(resolved) is resolved
    assert t2v.generate(resolved).provenance["seed"] == resolved.seed


@pytest.mark.parametrize("suffix", [".mp4", ".npy"])
def test_a_clip_that_is_rendered_is_the_one_that_is_generated(t2v: Pipeline, suffix: str, tmp_path: Path) -> None:
    clip = t2v.generate(REQUEST)
    clip.save(tmp_path / f"generated{suffix}")
    rendered = t2v.render(REQUEST, tmp_path / f"rendered{suffix}", keep=tmp_path / "kept.npz")
    assert (tmp_path / f"rendered{suffix}").read_bytes() == (tmp_path / f"generated{suffix}").read_bytes()
    assert (rendered.sha256, rendered.provenance, rendered.flaws) == (clip.sha256, clip.provenance, clip.flaws)
    saved = SavedLatents.load(tmp_path / "kept.npz")
    assert t2v.render_saved(saved, tmp_path / f"again{suffix}").sha256 == t2v.decode_saved(saved).sha256 == clip.sha256
    assert (tmp_path / f"again{suffix}").read_bytes() == (tmp_path / f"generated{suffix}").read_bytes()


def test_a_rendering_that_is_cancelled_leaves_no_file(t2v: Pipeline, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "decode":
            raise Cancelled("the user has gone")

    with pytest.raises(Cancelled, match="the user has gone"):
        t2v.render(REQUEST, tmp_path / "clip.mp4", on_step=stop)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BadInput, match="does not end in one of"):
        t2v.render(REQUEST, tmp_path / "clip.avi")


@pytest.mark.parametrize(("keep", "opened"), [(True, 2), (False, 4)])
def test_the_decoder_is_opened_once_where_networks_are_kept(
    keep: bool, opened: int, tiny_bundle: TinyBundleMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = load_pipeline(tiny_bundle("t2v").path, keep=keep)
    engine, seen = type(pipeline.engine), list[str]()
    real = engine.open

    def noted(self: Any, bundle: Any, component: str, graph: str, *more: Any, **named: Any) -> Any:
        seen.append(f"{component}/{graph}")
        return real(self, bundle, component, graph, *more, **named)

    monkeypatch.setattr(engine, "open", noted)
    first, second = (pipeline.generate(REQUEST).sha256 for _ in range(2))
    assert first == second
    assert len([name for name in seen if name.startswith("vae_decoder/")]) == opened
