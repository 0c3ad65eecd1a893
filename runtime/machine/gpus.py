"""The NVIDIA GPUs of this machine, as the driver itself names them: no package's word for it, and no CUDA toolkit."""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from typing import Any

# From cuda.h: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR, and CUDA_ERROR_NO_DEVICE.
_MAJOR, _MINOR, _NO_DEVICE = 75, 76, 100


@dataclass(frozen=True)
class Gpus:
    """``reason`` is why there is none, else empty. ``capabilities`` are as (8, 9) and go with ``names``; ``driver`` is the
    newest CUDA that the driver knows, as 13000 for 13.0.
    """

    names: tuple[str, ...]
    reason: str
    capabilities: tuple[tuple[int, int], ...] = ()
    driver: int = 0

    @property
    def targets(self) -> tuple[str, ...]:
        """The GPUs' names as in ``--gpu``: ("sm89",)."""
        return tuple(f"sm{major}{minor}" for major, minor in self.capabilities)


def in_order_of_nvidia_smi() -> None:
    """Let CUDA number GPUs as nvidia-smi does; by itself it begins with the fastest. Of use before CUDA starts in this process."""
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")


def gpus() -> Gpus:
    """Ask the driver; this starts it, and fixes the GPUs' order."""
    in_order_of_nvidia_smi()
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return Gpus((), f"no NVIDIA driver ({name} is not there)")
    status = driver.cuInit(0)
    count = ctypes.c_int(0)
    if status == 0:
        status = driver.cuDeviceGetCount(ctypes.byref(count))
    if status not in (0, _NO_DEVICE):
        return Gpus((), f"the NVIDIA driver fails to start (CUDA error {status})")
    if count.value == 0:
        return Gpus((), "the NVIDIA driver sees no GPU")
    names, capabilities = [], []
    for i in range(count.value):
        device, text = ctypes.c_int(0), ctypes.create_string_buffer(256)
        driver.cuDeviceGet(ctypes.byref(device), i)
        driver.cuDeviceGetName(text, 256, device)
        names.append(text.value.decode(errors="replace"))
        capabilities.append((_attribute(driver, device, _MAJOR), _attribute(driver, device, _MINOR)))
    version = ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    return Gpus(tuple(names), "", tuple(capabilities), version.value)


def _attribute(driver: Any, device: ctypes.c_int, attribute: int) -> int:
    value = ctypes.c_int(0)
    driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return value.value
