"""The engine onnxruntime-cuda as it is, but with the host for its device: no GPU is needed, and nothing is made up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint

import pytest

from reelquant.runtime.engines import registry
from reelquant.runtime.engines.onnxruntime_cuda.engine import OnnxRuntimeCuda
from reelquant.runtime.engines.onnxruntime_cuda.variant import ENGINE


class OnHost(OnnxRuntimeCuda):
    def __init__(self) -> None:
        super().__init__("cpu")

    def installed(self) -> bool:
        return True  # the package for CPUs is enough


@contextmanager
def cuda_on_host() -> Iterator[OnnxRuntimeCuda]:
    """The engine of this name is on the host inside, for whoever asks for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry._OWN, ENGINE, EntryPoint(ENGINE, f"{__name__}:OnHost", registry.GROUP))
        registry.get_engine.cache_clear()
        engine = registry.get_engine(ENGINE)
        assert isinstance(engine, OnnxRuntimeCuda)
        try:
            yield engine
        finally:
            registry.get_engine.cache_clear()
