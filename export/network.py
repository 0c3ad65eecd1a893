"""A checkpoint's network without its weights: built fake, traced fake, and run for real one layer at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from reelquant.export.weights import Weight


@dataclass(frozen=True)
class Network:
    """A module whose parameters are fake tensors, the mode they live in, and the real ones on disk by name."""

    module: nn.Module
    mode: FakeTensorMode
    weights: Mapping[str, Weight]

    @contextmanager
    def streamed(self) -> Iterator[None]:
        """Within this, the module computes with its real weights.

        Each layer's are read just before it runs and dropped after it, so memory holds one layer whatever the
        network's size (as accelerate's disk offload does).
        """
        with ExitStack() as hooks:
            for path, layer in self.module.named_modules():
                if any(True for _ in layer.parameters(recurse=False)):
                    hooks.enter_context(self._streamed_layer(layer, f"{path}." if path else ""))
            yield

    @contextmanager
    def _streamed_layer(self, layer: nn.Module, prefix: str) -> Iterator[None]:
        fakes = dict(layer._parameters)

        def fill(*_: Any) -> None:
            for name, fake in fakes.items():
                if fake is not None:
                    real = torch.from_numpy(self.weights[prefix + name].read())
                    layer._parameters[name] = nn.Parameter(real, requires_grad=False)

        def drop(*_: Any) -> None:
            layer._parameters.update(fakes)

        handles = layer.register_forward_pre_hook(fill), layer.register_forward_hook(drop, always_call=True)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def fake(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors without data, of the shapes and dtypes of ``inputs``, in this network's mode."""
        return {name: self.mode.from_tensor(value, static_shapes=True) for name, value in inputs.items()}


def fake_mode() -> FakeTensorMode:
    """A mode in which tensors have shapes and no data, with the symbols that dynamic axes need."""
    return FakeTensorMode(shape_env=ShapeEnv())


def is_fake(value: Any) -> bool:
    return isinstance(value, FakeTensor)
