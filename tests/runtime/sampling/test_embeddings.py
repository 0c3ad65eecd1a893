"""Kept embeddings give the same bits without the text encoder, and belong to one encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.errors import BadInput
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.request import Request
from tests.command_line import refused, run
from tests.conftest import TinyBundleMaker

Capture = pytest.CaptureFixture[str]
PROMPT = "a red circle"


class NoEncoder:
    inputs = outputs = ()

    def run(self, feeds: object) -> dict[str, NDArray[np.float32]]:
        raise AssertionError("the text encoder was run")


def test_embeddings_are_kept_and_used(
    tiny_bundle: TinyBundleMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny_bundle("t2v")
    plain = Pipeline(bundle).generate(Request(PROMPT, seed=1))
    first = Pipeline(bundle, embeddings=tmp_path).generate(Request(PROMPT, seed=1))
    assert len(list(tmp_path.glob("*.npy"))) == 2  # the prompt's and the empty one's
    later = Pipeline(bundle, embeddings=tmp_path)
    later._networks._loaded["text_encoder"] = NoEncoder()
    assert later.generate(Request(PROMPT, seed=1)).sha256 == first.sha256 == plain.sha256
    with pytest.raises(AssertionError, match="was run"):
        later.generate(Request("a blue circle", seed=1))


def test_another_encoder_or_engine_does_not_take_them(tiny_bundle: TinyBundleMaker, tmp_path: Path) -> None:
    for engine in ("openvino", "onnxruntime"):
        Pipeline(tiny_bundle("t2v"), EngineOptions(engine), embeddings=tmp_path).encode_prompt(PROMPT)
    assert len(list(tmp_path.glob("*.npy"))) == 4


def test_the_command(tiny_bundle: TinyBundleMaker, tmp_path: Path, capfd: Capture) -> None:
    bundle, listed, folder = tiny_bundle("t2v").path, tmp_path / "prompts.txt", tmp_path / "embeddings"
    listed.write_text("a red circle\n\na green square\n")
    assert run(capfd, "embed", bundle, folder, "a blue cross", "--file", listed).code == 0
    assert len(list(folder.glob("*.npy"))) == 4
    out = tmp_path / "a.npy"
    assert run(capfd, "generate", bundle, "a blue cross", "-o", out, "--embeddings", folder, "--seed", 1).code == 0
    assert "no prompts; give them as arguments" in refused(capfd, tmp_path, "embed", bundle, folder)
    missing = tmp_path / "none.txt"
    assert "cannot read the prompts in" in refused(capfd, tmp_path, "embed", bundle, folder, "--file", missing)
    too_long = " ".join(["red"] * 30)
    assert "this model reads" in refused(capfd, tmp_path, "embed", bundle, folder, "red", too_long)


def test_a_damaged_embedding_is_named(tiny_bundle: TinyBundleMaker, tmp_path: Path) -> None:
    pipeline = Pipeline(tiny_bundle("t2v"), embeddings=tmp_path)
    pipeline.encode_prompt(PROMPT)
    for file in tmp_path.glob("*.npy"):
        file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(BadInput, match="is damaged .*; remove it, and it is made again"):
        pipeline.encode_prompt(PROMPT)


def test_a_folder_that_cannot_be_filled_is_refused_before_the_encoder_is_loaded(
    tiny_bundle: TinyBundleMaker, tmp_path: Path, capfd: Capture
) -> None:
    bundle = tiny_bundle("t2v")
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "kept"):
        said = refused(
            capfd, tmp_path, "generate", bundle.path, PROMPT, "--embeddings", folder, "-o", tmp_path / "a.mp4"
        )
        assert f"the embeddings' folder {folder} cannot be written: {tmp_path / 'file'} is not a folder" in said
        pipeline = Pipeline(bundle, embeddings=folder)
        with pytest.raises(BadInput):
            pipeline.encode_prompt(PROMPT)
        assert not pipeline.loaded


def test_a_folder_that_has_them_all_may_be_read_only(
    tiny_bundle: TinyBundleMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny_bundle("t2v")
    Pipeline(bundle, embeddings=tmp_path).encode_prompt(PROMPT)
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    Pipeline(bundle, embeddings=tmp_path).encode_prompt(PROMPT)
    with pytest.raises(BadInput, match="no permission in"):
        Pipeline(bundle, embeddings=tmp_path).encode_prompt("a blue circle")
