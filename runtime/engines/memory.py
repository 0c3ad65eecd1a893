"""What running a graph takes of an engine's memory, as a model that a plan is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MemoryModel:
    """What running a graph holds in memory: so many times its weights' file, so many times the most bytes that its results
    hold at once (``live``), and so many times one layer's attention scores.
    """

    weights: float
    live: float
    scores: float = 0.0

    def memory(self, file: int, live: int, scores: int) -> tuple[int, int]:
        """Bytes of weights and of activations."""
        return int(self.weights * file), int(self.live * live + self.scores * scores)


@dataclass(frozen=True)
class EngineMemory:
    """What an engine takes with nothing loaded, in bytes, and what each kind of graph holds.

    Fitted at CogVideoX's own widths to what ``python -m benchmarks.memory`` prints. Files that an engine maps are
    counted, as the kernel counts them. Of a VAE, one graph is loaded at a time; no later chunk takes more than the first,
    and a still image is the encoder's. With ``on_device`` all of it is memory of the engine's own device, where both halves of
    guidance run one after the other. ``tiles`` is how many times as much a VAE computes in where it is built for tiles of several sizes.
    """

    process: int
    high: MemoryModel
    quantized: MemoryModel
    vae: dict[str, MemoryModel]
    on_device: bool = False
    tiles: float = 1.0
