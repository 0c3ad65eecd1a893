"""Why an engine cannot run here, found out before it is tried."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reelquant.runtime.engines.options import CURRENT
from reelquant.runtime.engines.tensorrt.flavor import Flavor
from reelquant.runtime.engines.tensorrt.targets import unsupported
from reelquant.runtime.machine.gpus import Gpus


def why_not(flavor: Flavor, record: Mapping[str, Any], here: Gpus, version: str) -> str | None:
    """What keeps engines that were built as ``record`` (of a manifest's ``engines``) says from running here, or None.

    ``version`` is of the flavor's package here. A plan is of the version that built it, and of the GPUs it was built for:
    an engine of TensorRT-RTX of those that it names, a standard one of the very GPU it was built on.
    """
    if not here.names:
        return f"{here.reason}; run it on a machine with an NVIDIA GPU and its driver, or use --engine openvino"
    if refused := unsupported(flavor, here):
        return refused
    if record["version"] != version:
        return (
            f"its engines were built with {flavor.engine} {record['version']}, and this is {version}; "
            f"install that version, or build them again: reelquant build BUNDLE --engine {flavor.engine}"
        )
    gpu, target = here.names[0], here.targets[0]
    built_for = [str(name) for name in record["targets"]]
    if built_for == [CURRENT]:
        built_for, target = [str(record["gpu"])], gpu_name(here)
    if target not in built_for:
        return (
            f"its engines were built for {', '.join(built_for)}, and this GPU is a {gpu} ({here.targets[0]}); "
            f"build them for it: reelquant build BUNDLE --engine {flavor.engine} --gpu "
            f"{here.targets[0] if flavor.ahead_of_time else CURRENT}"
        )
    return None


def gpu_name(here: Gpus) -> str:
    """What an engine for the GPU of this machine is bound to: the model and its compute capability."""
    return f"{here.names[0]} ({here.targets[0]})"
