"""Graphs on disk: small ONNX files that share one ``weights.safetensors`` per component.

ONNX external data is (file, offset, length), so it can point into a safetensors file: engines read it as ever, a
component's graphs share one copy of a weight, and any safetensors tool can look at the weights by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

WEIGHTS = "weights.safetensors"
_LEAST_BYTES = 512  # smaller tensors (scales, shapes) stay in the ONNX file
_PAGE = 4096
_PACKED = (ir.DataType.FLOAT4E2M1, ir.DataType.INT4)  # two values in a byte, which NumPy has not
_DTYPES = {
    ir.DataType.FLOAT: "F32",
    ir.DataType.FLOAT16: "F16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.FLOAT8E4M3FN: "F8_E4M3",
    ir.DataType.FLOAT4E2M1: "F4",
    ir.DataType.INT8: "I8",
    ir.DataType.INT4: "U8",  # safetensors has no INT4: its bytes, two values in each
    ir.DataType.UINT8: "U8",
    ir.DataType.INT32: "I32",
    ir.DataType.INT64: "I64",
    ir.DataType.BOOL: "BOOL",
}


def save_graphs(folder: Path, graphs: Mapping[str, ir.Model]) -> dict[str, str]:
    """Write ``graphs`` as ``folder/NAME.onnx`` and return the files by graph name, relative to ``folder``'s parent.

    The models keep their tensors; weights are written one at a time.

    Raises:
        ValueError: two graphs use one name for different weights.
    """
    files, weights = lay_out_graphs(folder, graphs)
    weights.finish()
    return files


def lay_out_graphs(folder: Path, graphs: Mapping[str, ir.Model]) -> tuple[dict[str, str], WeightsFile]:
    """As :func:`save_graphs`, but for the weights' values, which the caller lets the second result write.

    Raises:
        ValueError: two graphs use one name for different weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, ir.TensorProtocol] = {}
    for model in graphs.values():
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < _LEAST_BYTES or tensor.dtype not in _DTYPES:
                continue
            other = tensors.setdefault(name, tensor)
            if other is not tensor and (other.shape != tensor.shape or other.tobytes() != tensor.tobytes()):
                raise ValueError(f"{name} differs between the graphs {', '.join(graphs)}")
    weights = WeightsFile(folder / WEIGHTS, tensors)
    for graph, model in graphs.items():
        kept = {name: value.const_value for name, value in model.graph.initializers.items()}
        for name, value in model.graph.initializers.items():
            if name in weights.places:
                offset, length = weights.places[name]
                value.const_value = ir.ExternalTensor(
                    WEIGHTS, offset, length, tensors[name].dtype,
                    shape=ir.Shape(tensors[name].shape.numpy()), name=name, base_dir=folder,
                )  # fmt: skip
        try:
            ir.save(model, folder / f"{graph}.onnx")
        finally:
            for name, tensor in kept.items():
                model.graph.initializers[name].const_value = tensor
    return {graph: f"{folder.name}/{graph}.onnx" for graph in graphs}, weights


def load_graph(path: Path) -> ir.Model:
    """Read an ONNX file; its weights stay on disk until they are looked at."""
    return ir.load(path)


def load_mapped(path: Path) -> ir.Model:
    """Read an ONNX file whose weights are read, when they are looked at, through memory maps of our own.

    onnx-ir refuses to read a file that has several hard links, which a killed calibration leaves behind and tools that
    save disk space make.
    """
    model = load_graph(path)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.location == WEIGHTS and tensor.dtype not in _PACKED:
            value.const_value = ir.LazyTensor(
                partial(_mapped, tensor), dtype=tensor.dtype, shape=tensor.shape, name=tensor.name or ""
            )
    return model


def _mapped(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    shape = tuple(int(dim) for dim in tensor.shape.numpy())
    array = np.memmap(tensor.path, tensor.dtype.numpy(), "r", tensor.offset or 0, shape)
    return ir.Tensor(array, tensor.dtype)


class WeightsFile:
    """A safetensors file that has its whole length from the start and is filled in any order.

    ``places`` are each tensor's (offset in the file, length). The format has no room between tensors, so the header is
    padded to a page and sizes descend: what engines map into memory is then aligned.
    """

    def __init__(self, path: Path, tensors: Mapping[str, ir.TensorProtocol]) -> None:
        self._path, self._missing = path, dict(tensors)
        order = sorted(tensors, key=lambda name: (-tensors[name].nbytes, name))
        header: dict[str, dict[str, Any]] = {}
        end = 0
        for name in order:
            tensor = tensors[name]
            header[name] = {
                "dtype": _DTYPES[tensor.dtype],
                "shape": [tensor.nbytes] if tensor.dtype == ir.DataType.INT4 else list(map(int, tensor.shape.numpy())),
                "data_offsets": [end, end + tensor.nbytes],
            }
            end += tensor.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 8) % _PAGE)
        start = len(text) + 8
        self.places = {name: (start + header[name]["data_offsets"][0], tensors[name].nbytes) for name in order}
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(start + end)

    def write(self, names: Iterable[str]) -> None:
        """Write those of ``names`` that this file has and are not written yet, one at a time."""
        with self._path.open("r+b") as file:
            for name in names:
                tensor = self._missing.pop(name, None)
                if tensor is not None:
                    file.seek(self.places[name][0])
                    # A view, not tobytes(), which would copy the largest weights once more.
                    packed = tensor.dtype in _PACKED
                    values = np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data
                    file.write(tensor.tobytes() if packed else values)

    def finish(self) -> None:
        """Write what is not written yet."""
        self.write(list(self._missing))
