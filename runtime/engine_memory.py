"""What running a graph takes of memory on each engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Held:
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
    counted, as the kernel counts them.
    """

    process: int
    high: Held
    quantized: Held
    vae: dict[str, Held]


# OpenVINO maps the file and repacks its linears; its attention is fused. Of a VAE, one graph is loaded at a
# time; no later chunk takes more than the first, and a still image is the encoder's.
ENGINE_MEMORY = {
    "openvino": EngineMemory(
        process=140_000_000,
        high=Held(1.8, 2.5),
        quantized=Held(1.15, 2.5),
        vae={"decoder": Held(2.06, 1.05), "encoder": Held(2.0, 2.3)},
    ),
    "onnxruntime": EngineMemory(
        process=90_000_000,
        high=Held(0.95, 4.6, 0.75),
        quantized=Held(0.85, 4.6, 0.75),
        vae={"decoder": Held(1.09, 0.69), "encoder": Held(1.03, 0.97)},
    ),
}
