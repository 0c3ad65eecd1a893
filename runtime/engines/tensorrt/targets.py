"""GPUs that engines are built for, by compute capability, which says what number formats their tensor cores have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

from reelquant.runtime.bundle.support import Support
from reelquant.runtime.engines.options import CURRENT
from reelquant.runtime.engines.tensorrt.flavor import Flavor
from reelquant.runtime.errors import BadInput
from reelquant.runtime.machine.gpus import Gpus


@dataclass(frozen=True)
class Target:
    """A compute capability. ``name`` is as in ``--gpu``: sm89 is 8.9."""

    name: str
    gpus: str

    @property
    def capability(self) -> tuple[int, int]:
        number = int(self.name[2:])
        return number // 10, number % 10

    def computes(self, support: Support) -> bool:
        """Whether its tensor cores have the format."""
        return int(self.name[2:]) >= support.gpu


TARGETS = {
    target.name: target
    for target in (
        Target("sm75", "Turing: T4, RTX 20"),
        Target("sm80", "Ampere: A100, A30"),
        Target("sm86", "Ampere: A10, A40, RTX 30"),
        Target("sm89", "Ada: L4, L40S, RTX 40"),
        Target("sm90", "Hopper: H100, H200"),
        Target("sm100", "Blackwell: B200, GB200"),
        Target("sm103", "Blackwell: B300"),
        Target("sm120", "Blackwell: RTX 50, RTX PRO 6000"),
        Target("sm121", "Blackwell: GB10"),
    )
}


def check_targets(names: tuple[str, ...], flavor: Flavor) -> None:
    """See that this flavor of TensorRT builds for the GPUs ``names`` here; "current" is the GPU of this machine.

    Raises:
        BadInput: it does not; the message names those that it builds for.
        MissingExtra: its package is not installed.
    """
    if names == (CURRENT,):
        return
    if not flavor.ahead_of_time:
        raise BadInput(
            f"{flavor.engine} builds only for the GPU of the machine it runs on: use --gpu current there, "
            "or --engine tensorrt-rtx, which builds for GPUs that are not there"
        )
    known = buildable(flavor)
    for name in names or ("",):
        if name not in known:
            raise BadInput(f"{flavor.engine} {flavor.version()} does not build for {name!r}; one of {', '.join(known)}")


def buildable(flavor: Flavor) -> list[str]:
    """The names that an ahead-of-time flavor takes, as its package lists them."""
    members = flavor.module().ComputeCapability.__members__
    return [name for name in TARGETS if name.upper() in members]


def unsupported(flavor: Flavor, here: Gpus) -> str | None:
    """Why this flavor can build and run nothing on the first GPU that is here; None where it can, or where there is none.

    TensorRT-RTX builds engines on a Hopper GPU and then refuses to load them, so its own list of GPUs is asked first. A driver
    that is older than CUDA's runtime fails at the first call of it (error 35); within a major version they go together.
    """
    if here.names and (old := _old_driver(here.driver)):
        return old
    if not here.names or not flavor.ahead_of_time or here.targets[0] in (known := buildable(flavor)):
        return None
    return (
        f"{flavor.engine} {flavor.version()} does not support {here.names[0]} ({here.targets[0]}), only "
        f"{', '.join(known)}; use --engine onnxruntime or tensorrt there"
    )


def _old_driver(driver: int) -> str | None:
    try:
        installed = metadata.version("cuda-bindings")
    except metadata.PackageNotFoundError:
        return None
    major = int(installed.split(".")[0])
    if not driver or driver // 1000 >= major:
        return None
    has = f"{driver // 1000}.{driver % 1000 // 10}"
    return (
        f"the NVIDIA driver knows CUDA {has}, and cuda-bindings {installed} needs {major}.0; update the driver, or install what "
        f"fits it: pip install 'cuda-bindings<{driver // 1000 + 1}'"
    )


def lacking(targets: tuple[str, ...], formats: Mapping[str, Support]) -> str | None:
    """The first target without hardware for one of ``formats``, said to a user; or None."""
    for name in targets:
        for format, support in sorted(formats.items()):
            if name in TARGETS and not TARGETS[name].computes(support):
                able = [other.name for other in TARGETS.values() if other.computes(support)]
                return f"{name} ({TARGETS[name].gpus}) has no {format}; {able[0]} and newer do"
    return None
