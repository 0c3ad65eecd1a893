"""A manifest is read strictly: whatever is not as it was written is refused, and by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reelquant.runtime.bundle.manifest import Component, Defaults, FileEntry, Manifest
from reelquant.runtime.bundle.support import Support
from reelquant.runtime.errors import BundleError
from reelquant.runtime.models.cogvideox.geometry import Geometry

WHERE = Path("bundle/manifest.json")
MANIFEST = Manifest(
    task="i2v",
    precision="int8",
    defaults=Defaults(frames=49, height=480, width=720, guidance=7),
    geometry=Geometry(),
    text_tokens=226,
    transformer={"patch_size": 2},
    vae={"scaling_factor": 0.7, "invert_scale_latents": None},
    scheduler={"_class_name": "CogVideoXDDIMScheduler"},
    components={
        "transformer": Component(
            {"main": "transformer/main.onnx"}, "bf16", {"mxfp8": Support(gpu=100, cpu=False)}, {"main": {"nodes": 3}}
        )
    },
    source={"checkpoint": "x", "files": {}},
    tools={"torch": "2"},
    files={"transformer/main.onnx": FileEntry(3, "ab" * 32), "tokenizer.json": FileEntry(0, "cd" * 32)},
    engines={"openvino": {"version": "2026"}},
)


def changed(*keys: str, to: Any) -> str:
    raw = json.loads(MANIFEST.to_json())
    place = raw
    for key in keys[:-1]:
        place = place[key]
    if to is ...:
        del place[keys[-1]]
    else:
        place[keys[-1]] = to
    return json.dumps(raw)


def test_what_is_written_is_read() -> None:
    text = MANIFEST.to_json()
    assert Manifest.from_json(text, WHERE) == MANIFEST
    assert Manifest.from_json(text, WHERE).to_json() == text and text.endswith("}\n")
    assert Manifest.from_json(changed("quantization", to={"recipe": "int8"}), WHERE).quantization == {"recipe": "int8"}


@pytest.mark.parametrize("found", [0, 1, 3, "2", None, ...])
def test_another_format_is_refused(found: Any) -> None:
    with pytest.raises(BundleError, match=r"manifest.json has format .*; this version reads format 2: export it again"):
        Manifest.from_json(changed("format", to=found), WHERE)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"x"', "[" * 100_000, '{"format": 2}', "\ud83d"])
def test_other_texts_are_no_manifests(text: str) -> None:
    with pytest.raises(BundleError, match=r"bundle/manifest.json (is not a valid manifest|has format None)"):
        Manifest.from_json(text, WHERE)


@pytest.mark.parametrize(
    ("keys", "to"),
    [
        (("extra",), 1),
        (("task",), ...),
        (("files",), ...),
        (("files",), []),
        (("precision",), 8),
        (("text_tokens",), "226"),
        (("text_tokens",), True),
        (("transformer",), None),
        (("quantization",), "int8"),
        (("defaults", "frames"), "49"),
        (("defaults", "fps"), 8.5),
        (("defaults", "guidance"), "6"),
        (("defaults", "colour"), "red"),
        (("geometry", "spatial"), None),
        (("components", "transformer"), "transformer/main.onnx"),
        (("components", "transformer", "graphs"), ["transformer/main.onnx"]),
        (("components", "transformer", "stats"), 3),
        (("components", "transformer", "formats"), ["mxfp8"]),
        (("components", "transformer", "formats", "mxfp8", "gpu"), "sm100"),
        (("components", "transformer", "formats", "mxfp8", "tpu"), 4),
        (("files", "tokenizer.json"), 7),
        (("files", "tokenizer.json", "size"), "7"),
        (("files", "tokenizer.json", "mode"), 7),
    ],
)
def test_a_field_missing_unknown_or_of_another_kind(keys: tuple[str, ...], to: Any) -> None:
    with pytest.raises(BundleError, match=r"manifest.json is not a valid manifest \(.+\); export the bundle again"):
        Manifest.from_json(changed(*keys, to=to), WHERE)


@pytest.mark.parametrize(
    ("keys", "to", "words"),
    [
        (("task",), "v2v", "unknown task 'v2v', not one of t2v, i2v"),
        (("vae", "scaling_factor"), 0, "scaling_factor 0"),
        (("vae", "scaling_factor"), ..., "scaling_factor None"),
        (("defaults", "fps"), 0, "below 1"),
        (("text_tokens",), 0, "below 1"),
        (("geometry", "patch"), 0, "below 1"),
        (("components", "transformer", "compute"), "fp64", "unknown compute dtype 'fp64'"),
    ],
)
def test_values_that_nothing_can_be_made_with(keys: tuple[str, ...], to: Any, words: str) -> None:
    with pytest.raises(BundleError, match=f"{words}; export the bundle again"):
        Manifest.from_json(changed(*keys, to=to), WHERE)


UNSAFE = ["/etc/passwd", "../x", "a/../../x", "a//b", "a/", "", ".hidden", "a/.hidden", "a\\b", "C:x", "a b", "a\n", "é", "~/x",
          "a/./b"]  # fmt: skip


@pytest.mark.parametrize("name", UNSAFE)
def test_names_that_could_leave_the_folder_are_refused(name: str) -> None:
    entry = {"size": 1, "sha256": "00"}
    listed = {"transformer/main.onnx": entry, name: entry}
    for text in (changed("files", to=listed), changed("components", "transformer", "graphs", "main", to=name)):
        with pytest.raises(BundleError, match="names the unsafe file .*; do not use this bundle"):
            Manifest.from_json(text, WHERE)


@pytest.mark.parametrize("name", ["transformer/other.onnx", "tokenizer.json"])
def test_a_graph_is_a_listed_file_of_its_component(name: str) -> None:
    with pytest.raises(BundleError, match=f"transformer's graph {name} is not listed in its folder"):
        Manifest.from_json(changed("components", "transformer", "graphs", "main", to=name), WHERE)
