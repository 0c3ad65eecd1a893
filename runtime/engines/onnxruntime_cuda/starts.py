"""Whether ONNX Runtime's CUDA provider starts here, found by starting it: it is listed wherever the package has it, libraries or not."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from types import ModuleType
from typing import Any

from reelquant.runtime.machine.gpus import gpus

CUDA = "CUDAExecutionProvider"
# An ONNX file of one node, y = Neg(x), in opset 13: no onnx is needed to write it.
_TINY = (
    b'\x08\x08:2\n\x0b\n\x01x\x12\x01y"\x03Neg\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)


def why_not(module: ModuleType, device: int = 0) -> str:
    """Why CUDA does not start on GPU ``device``, in one line; empty where it does. ``module`` is onnxruntime."""
    if CUDA not in module.get_available_providers():
        return "this build of onnxruntime is for CPUs alone"
    found = gpus()
    if device >= len(found.names):
        return found.reason or f"there is no GPU {device} here, only {', '.join(found.names)}"
    return tried(module, device)


def tried(module: ModuleType, device: int) -> str:
    """What a session on GPU ``device`` says when it is opened, in one line; empty where it computes there.

    Nothing is written to stdout, where ONNX Runtime tells of libraries that it lacks.
    """
    missing = load_libraries(module)
    try:
        with _silent(module):
            started = module.InferenceSession(_TINY, providers=providers(device), enable_fallback=0).get_providers()
    except Exception as error:  # noqa: BLE001 - onnxruntime's exception classes share no public base but Exception
        return " ".join(str(error).split())[:300] or type(error).__name__
    return "" if CUDA in started else missing or "its libraries are missing, or are of another CUDA"


def load_libraries(module: ModuleType) -> str:
    """Load CUDA's libraries from their pip packages, where ONNX Runtime does not look by itself; return the first that it
    misses and why, empty where it has all.
    """
    said = io.StringIO()
    with redirect_stdout(said):
        module.preload_dlls()
    missing = [
        line.removeprefix("Failed to load ") for line in said.getvalue().splitlines() if "Failed to load" in line
    ]
    return f"cannot load {missing[0]}" if missing else ""


def providers(device: int) -> list[Any]:
    """The provider and its options, and the CPU's for what CUDA has no kernel of.

    Float32 is computed in float32: TF32, which is the default, has fp16's 10 bits of mantissa. The kernel of a convolution is chosen by
    cuDNN's heuristic: the default tries all of them at every new shape. Memory grows by what is asked for, and does not double.
    """
    chosen = {
        "device_id": device,
        "use_tf32": 0,
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }
    return [(CUDA, chosen), "CPUExecutionProvider"]


@contextmanager
def _silent(module: ModuleType) -> Iterator[None]:
    """Nothing is logged inside: what is wrong is said in the error."""
    module.set_default_logger_severity(4)
    try:
        yield
    finally:
        module.set_default_logger_severity(2)  # the default
