"""A network's weights on disk: safetensors files, indexed by name and read one tensor at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from reelquant.runtime.errors import BundleError

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_LFS = b"version https://git-lfs"
_AGAIN = "download the checkpoint again"
# Names that other programs give, and what to do about them.
_FOREIGN = {
    r"lora_|\.base_layer\.|lora\.(up|down)": "so a LoRA that is not merged; merge it (diffusers: fuse_lora(), "
    "unload_lora_weights()) and save the pipeline with save_pretrained()",
    r"\.to_(added_)?(qkv|kv)\.": "so its Q, K and V are fused; load it in diffusers, call unfuse_qkv_projections() and save it",
    r"^_orig_mod\.": "so it was saved from a compiled module; save its _orig_mod instead",
    r"^module\.": "so it was saved from a wrapper of several GPUs; save its module instead",
    r"^(model\.diffusion_model|first_stage_model|conditioner)\.": "so it is in SAT's or ComfyUI's layout; convert it with "
    "diffusers' scripts/convert_cogvideox_to_diffusers.py",
    r"\.(SCB|absmax|quant_state|weight_scale|qweight|qzeros)\b": "so it is quantized already; give the checkpoint before that, in "
    "16 or 32 bit",
    r"(^|\.)ema(_|\.)": "so averaged weights of a training; save the model itself",
}


class Weight(Protocol):
    """A tensor that is read when it is needed."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Stored:
    """One tensor in a safetensors file: where its bytes are, and what they mean."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    count: int
    name: str = ""

    def read(self) -> NDArray[np.float32]:
        """Return the values as float32, which every stored dtype but F64 fits without loss.

        Read, not mapped: mapped pages would count as this process's memory until all is done.

        Raises:
            BundleError: the file is shorter than its header says.
        """
        dtype = _DTYPES[self.dtype]
        with self.file.open("rb") as file:
            file.seek(self.start)
            data = np.fromfile(file, np.uint8, self.count * dtype.itemsize)
        if data.size != self.count * dtype.itemsize:
            raise BundleError(f"{self.file} is cut short; {_AGAIN}")
        # torch, whose conversion takes every core.
        values: NDArray[np.float32] = torch.from_numpy(data).view(dtype).to(torch.float32).numpy()
        return values.reshape(self.shape)


@dataclass(frozen=True)
class Finite:
    """A stored weight that is refused when it is read and holds what no computation survives."""

    weight: Stored

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    def read(self) -> NDArray[np.float32]:
        """As the weight's.

        Raises:
            BundleError: a value is NaN or infinite.
        """
        values = self.weight.read()
        bad = values.size - int(torch.isfinite(torch.from_numpy(values)).sum())
        if bad:
            raise BundleError(
                f"{self.weight.file}: {self.weight.name} has {bad} of {values.size} values that are NaN or infinite; {_AGAIN}, or, "
                "if it was trained or merged by hand, take it from before that"
            )
        return values


@dataclass(frozen=True)
class Rounded:
    """Another weight, with its values rounded whenever they are read."""

    weight: Weight
    rounding: Callable[[NDArray[np.float32]], NDArray[np.float32]]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    def read(self) -> NDArray[np.float32]:
        return self.rounding(self.weight.read())


def open_weights(folder: Path) -> dict[str, Stored]:
    """Index the weights in ``folder``: one safetensors file, or shards with their ``.index.json``.

    Where full and ``fp16`` variants lie side by side, the full ones are taken; where a single file and an index do, the
    index's shards, as diffusers takes them.

    Raises:
        BundleError: none, several that no index explains, a missing shard, or a damaged header.
    """
    indices = _plain_first(folder.glob("*.safetensors.index*.json"))
    files = _plain_first(folder.glob("*.safetensors"))
    whole = [file for file in files if "-of-" not in file.name]
    if whole and not (indices and (_variant(whole[0]) or not _variant(indices[0]))):
        if len([file for file in whole if _variant(file) == _variant(whole[0])]) > 1:
            names = ", ".join(file.name for file in whole)
            raise BundleError(f"{folder} holds {names} and no index says which to use; keep one")
        return read_header(whole[0])
    if not indices:
        raise BundleError(f"{folder} has no .safetensors weights, or shards without their .index.json; {_AGAIN}")
    return _read_shards(indices[0])


def check_fit(folder: Path, stored: Mapping[str, Stored], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Hold ``stored`` against the shapes that the config asks for.

    Raises:
        BundleError: a tensor is missing, is one too many, or has another shape; the message names it.
    """
    for name in sorted(stored.keys() - wanted.keys()):
        for kind, remedy in _FOREIGN.items():
            if re.search(kind, name):
                raise BundleError(f"{folder} holds {name}, {remedy}")
    for name in sorted(wanted.keys() - stored.keys()):
        raise BundleError(f"{folder} lacks {name}, which its config asks for; {_AGAIN}")
    for name in sorted(stored.keys() - wanted.keys()):
        raise BundleError(f"{folder} holds {name}, which its config has no place for; {_AGAIN}")
    for name, shape in wanted.items():
        if stored[name].shape != tuple(shape):
            raise BundleError(
                f"{folder}: {name} is {list(stored[name].shape)}, and its config asks for {list(shape)}; {_AGAIN}"
            )


def read_header(file: Path) -> dict[str, Stored]:
    """As :func:`read_safetensors`, the tensors alone."""
    return read_safetensors(file)[0]


def read_safetensors(file: Path, remedy: str = _AGAIN) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors of one safetensors file (8 bytes of length, a JSON header, then the data), and what its metadata say.

    Raises:
        BundleError: it is not one, or a tensor lies outside it; the message ends with ``remedy``.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as data:
            length = int.from_bytes(data.read(8), "little")
            if length > size - 8:
                raise ValueError("its header is cut short")
            header: dict[str, Any] = json.loads(data.read(length))
        metadata = {str(key): str(value) for key, value in (header.pop("__metadata__", None) or {}).items()}
        return {name: _entry(file, name, entry, length + 8, size) for name, entry in header.items()}, metadata
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"cannot read {file}: {error}; {remedy}") from error


def check_whole(file: Path, remedy: str = _AGAIN) -> None:
    """Raises:
    BundleError: the file is empty, or a Git LFS pointer in the place of the file itself.
    """
    with file.open("rb") as data:
        start = data.read(len(_LFS))
    if not start:
        raise BundleError(f"cannot read {file}: it is empty; {remedy}")
    if start == _LFS:
        raise BundleError(
            f"cannot read {file}: it is a Git LFS pointer and not the file itself; run git lfs pull there, or {remedy}"
        )


def _entry(file: Path, name: str, entry: Mapping[str, Any], base: int, size: int) -> Stored:
    shape = tuple(int(dim) for dim in entry["shape"])
    start, end = (int(offset) for offset in entry["data_offsets"])
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"{name} has dtype {entry['dtype']}; {', '.join(_DTYPES)} are read")
    count = int(np.prod(shape, dtype=np.int64))
    if min(shape, default=0) < 0 or end - start != count * _DTYPES[entry["dtype"]].itemsize:
        raise ValueError(f"{name} has not the bytes that its shape needs")
    if start < 0 or base + end > size:
        raise ValueError(f"{name} lies past the end of the file")
    return Stored(file, entry["dtype"], shape, base + start, count, name)


def _read_shards(index: Path) -> dict[str, Stored]:
    try:
        places = {str(name): str(file) for name, file in json.loads(index.read_text())["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"cannot read {index}: {error}; {_AGAIN}") from error
    shards: dict[str, dict[str, Stored]] = {}
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard or not (index.parent / shard).is_file():
            raise BundleError(f"{index} names {shard}, which is not beside it; {_AGAIN}")
        shards[shard] = read_header(index.parent / shard)
    for name, shard in places.items():
        if name not in shards[shard]:
            raise BundleError(f"{index.parent / shard} lacks {name}, which {index.name} says it holds; {_AGAIN}")
    return {name: shards[shard][name] for name, shard in places.items()}


def _variant(file: Path) -> bool:
    return ".fp16" in file.name or ".bf16" in file.name


def _plain_first(files: Any) -> list[Path]:
    return sorted(files, key=lambda file: (_variant(file), file.name))
