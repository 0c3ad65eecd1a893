"""Weights are found, indexed and read one at a time, and whatever does not fit is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from reelquant.export.weights import check_fit, open_weights, read_header
from reelquant.runtime.errors import BundleError

TENSORS = {"a": torch.randn(3, 4), "b.weight": torch.randn(5), "c": torch.randn(2, 2, 2)}
INDEX = "model.safetensors.index.json"


def shards(folder: Path, **places: str) -> None:
    for file in set(places.values()):
        save_file({name: TENSORS[name] for name, place in places.items() if place == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_values_are_read_as_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    save_file({name: tensor.to(dtype) for name, tensor in TENSORS.items()}, tmp_path / "model.safetensors")
    found = open_weights(tmp_path)
    assert found.keys() == TENSORS.keys()
    for name, stored in found.items():
        value = stored.read()
        assert value.dtype == np.float32 and np.array_equal(value, TENSORS[name].to(dtype).float().numpy())


def test_shards_are_read_by_their_index(tmp_path: Path) -> None:
    places = {"a": "model-00001-of-00002.safetensors", "c": "model-00002-of-00002.safetensors"}
    shards(tmp_path, **places)
    found = open_weights(tmp_path)
    assert {name: stored.file.name for name, stored in found.items()} == places
    assert np.array_equal(found["c"].read(), TENSORS["c"].numpy())


def test_the_full_variant_is_taken_before_fp16(tmp_path: Path) -> None:
    half = {name: tensor.half() for name, tensor in TENSORS.items()}
    save_file(half, tmp_path / "model.fp16.safetensors")
    assert {stored.dtype for stored in open_weights(tmp_path).values()} == {"F16"}
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert {stored.dtype for stored in open_weights(tmp_path).values()} == {"F32"}
    (tmp_path / "model.safetensors").unlink()
    shards(tmp_path, **dict.fromkeys(TENSORS, "model-00001-of-00001.safetensors"))
    assert {stored.dtype for stored in open_weights(tmp_path).values()} == {"F32"}


def test_sharded_fp16_variant(tmp_path: Path) -> None:
    save_file({"a": TENSORS["a"].half()}, tmp_path / "model.fp16-00001-of-00001.safetensors")
    text = json.dumps({"weight_map": {"a": "model.fp16-00001-of-00001.safetensors"}})
    (tmp_path / "model.safetensors.index.fp16.json").write_text(text)
    assert open_weights(tmp_path)["a"].dtype == "F16"


def refuse(folder: Path) -> str:
    with pytest.raises(BundleError) as refusal:
        open_weights(folder)
    return str(refusal.value)


def test_what_no_index_explains(tmp_path: Path) -> None:
    assert "has no .safetensors weights, or shards without" in refuse(tmp_path)
    save_file(TENSORS, tmp_path / "model-00001-of-00002.safetensors")
    assert "has no .safetensors weights, or shards without" in refuse(tmp_path)
    save_file(TENSORS, tmp_path / "one.safetensors")
    save_file(TENSORS, tmp_path / "two.safetensors")
    assert "holds one.safetensors, two.safetensors and no index says which to use; keep one" in refuse(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ('{"weight_map": {"a": "../x.safetensors"}}', "names ../x.safetensors, which is not beside it"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "names gone.safetensors, which is not beside it"),
        (
            '{"weight_map": {"z": "model-1-of-1.safetensors"}}',
            "lacks z, which model.safetensors.index.json says it hol",
        ),
        ('{"weight_map": 3}', "cannot read"),
        ("[", "cannot read"),
    ],
)
def test_an_index_that_is_wrong(index: str, message: str, tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model-1-of-1.safetensors")
    (tmp_path / INDEX).write_text(index)
    assert message in refuse(tmp_path)


def header(**entries: Any) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + bytes(16)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot read"),
        (b"\xff" * 8, "its header is cut short"),
        (
            header(a={"dtype": "I8", "shape": [16], "data_offsets": [0, 16]}),
            "a has dtype I8; F64, F32, F16, BF16 are r",
        ),
        (header(a={"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}), "a has not the bytes that its shape needs"),
        (header(a={"dtype": "F32", "shape": [5], "data_offsets": [0, 20]}), "a lies past the end of the file"),
        (header(a={"dtype": "F32", "shape": [-4], "data_offsets": [0, -16]}), "a has not the bytes"),
        (header(a={"dtype": "F32", "data_offsets": [0, 16]}), "cannot read"),
    ],
)
def test_a_header_that_is_wrong(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(BundleError, match=message):
        read_header(tmp_path / "x.safetensors")


def test_a_file_that_shrinks_after_its_header_was_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(TENSORS, file)
    found = open_weights(tmp_path)
    file.write_bytes(file.read_bytes()[:-8])
    last = max(found.values(), key=lambda stored: stored.start)
    with pytest.raises(BundleError, match="is cut short"):
        last.read()


def test_every_misfit_is_named(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    stored = open_weights(tmp_path)
    wanted = {"a": (3, 4), "b.weight": (5,), "c": (2, 2, 2)}
    check_fit(tmp_path, stored, wanted)
    for changed, message in [
        ({**wanted, "d": (1,)}, "lacks d, which its config asks for"),
        ({"a": (3, 4), "c": (2, 2, 2)}, "holds b.weight, which its config has no place for"),
        ({**wanted, "a": (4, 3)}, r"a is \[3, 4\], and its config asks for \[4, 3\]"),
    ]:
        with pytest.raises(BundleError, match=message):
            check_fit(tmp_path, stored, changed)


def test_bfloat16_bits_are_exact(tmp_path: Path) -> None:
    bits = np.arange(0, 2**16, 7, dtype=np.uint16)
    values = bits.view(ml_dtypes.bfloat16)
    text = json.dumps({"a": {"dtype": "BF16", "shape": [len(bits)], "data_offsets": [0, bits.nbytes]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bits.tobytes())
    assert np.array_equal(open_weights(tmp_path)["a"].read(), values.astype(np.float32), equal_nan=True)
