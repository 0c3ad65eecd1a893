"""The causal 3D VAE as a stream: chunks in, chunks out, caches carried between them, memory flat in clip length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engine import Array, EnginePlan
from reelquant.runtime.graphs import check_component, open_graph
from reelquant.runtime.tiles import decode_tiled, encode_tiled, exceeds, tile_count, tilings
from reelquant.runtime.trust import OWN, Trust

Floats = NDArray[np.float32]
_Open = Callable[[str], EnginePlan]


class VaeDecoder:
    """Scaled latents → frames. The first chunk is three latent frames (nine frames), each later one two (eight).

    With ``tiled``, frames larger than half of the VAE's own size are decoded in tiles, in the memory of one. ``graphs`` are
    loaded ones by name, in place of the bundle's; they may answer more.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: str,
        threads: int | None = None,
        tiled: bool = False,
        trust: Trust = OWN,
        graphs: Mapping[str, EnginePlan] | None = None,
    ) -> None:
        own = _Graphs(bundle, "vae_decoder", engine, threads, trust).open
        self._open: _Open = own if graphs is None else graphs.__getitem__
        self._tiling = tilings(bundle.manifest.vae, bundle.manifest.geometry.spatial) if tiled else None
        self._scale = np.float32(1 / bundle.manifest.vae["scaling_factor"])

    def chunks(self, latents: Floats) -> int:
        """How many chunks :meth:`decode` computes of latents [latent_frames, channels, h, w], those of all tiles counted."""
        tiles = tile_count(latents, self._tiling) if self._tiling and exceeds(latents.shape[2:], self._tiling) else 1
        return (len(latents) - 1) // 2 * tiles

    def decode(self, latents: Floats, advance: Callable[[], None] = lambda: None) -> Iterator[Floats]:
        """Yield float32 [1, 3, frames, height, width] chunks of scaled latents [latent_frames, channels, h, w].

        ``advance`` is called after each chunk that is computed.

        Raises:
            ValueError: the number of latent frames is not odd and at least three.
        """
        if len(latents) < 3 or len(latents) % 2 == 0:
            raise ValueError(f"{len(latents)} latent frames; the stream takes an odd number from 3")
        if self._tiling and exceeds(latents.shape[2:], self._tiling):
            yield from decode_tiled(self._whole, latents, self._tiling, advance)
            return
        for chunk in self._whole(latents):
            advance()
            yield chunk

    def results(self, latents: Floats) -> Iterator[tuple[str, dict[str, Array]]]:
        """Of each chunk of :meth:`decode`'s latents the graph that ran, "first" or "next", and all that it answered. The next
        chunk's caches are written over the caches in it.
        """
        chunks = _chunks(latents.transpose(1, 0, 2, 3)[None], 3, 2)
        return _stream(self._open, "latents", (chunk * self._scale for chunk in chunks))

    def _whole(self, latents: Floats) -> Iterator[Floats]:
        return (results.pop("frames") for _, results in self.results(latents))


class VaeEncoder:
    """Frames → scaled latents. A still image is a stream of one frame; ``tiled`` is as the decoder's."""

    def __init__(
        self, bundle: Bundle, engine: str, threads: int | None = None, tiled: bool = False, trust: Trust = OWN
    ) -> None:
        self._graphs = _Graphs(bundle, "vae_encoder", engine, threads, trust)
        vae = bundle.manifest.vae
        self._tiling = tilings(vae, bundle.manifest.geometry.spatial, "encoder") if tiled else None
        scale = float(vae["scaling_factor"])
        # The 1.5 image-to-video checkpoint was trained on images' latents divided by the factor.
        self._scale = np.float32(scale)
        self._image_scale = np.float32(1 / scale if vae.get("invert_scale_latents") else scale)

    def encode_image(self, image: Floats, noise: Floats | None = None) -> Floats:
        """Return scaled latents [1, channels, h, w] of an image [1, 3, 1, height, width].

        ``noise``, of the latents' shape, samples the posterior as the pipelines do; without it its mean is returned.
        """

        plan = self._graphs.open("image")

        def whole(tile: Floats) -> Floats:
            return np.asarray(plan.run({"frames": tile})["moments"])

        return self._sample(self._moments(whole, image), noise) * self._image_scale

    def encode(self, frames: Floats, noise: Floats | None = None) -> Floats:
        """Return scaled latents [latent_frames, channels, h, w] of a clip [1, 3, 8N+1, height, width]."""

        def whole(tile: Floats) -> Floats:
            found = [results.pop("moments") for _, results in _stream(self._graphs.open, "frames", _chunks(tile, 9, 8))]
            return np.concatenate(found, axis=2)

        return self._sample(self._moments(whole, frames), noise) * self._scale

    def _moments(self, whole: Callable[[Floats], Floats], frames: Floats) -> Floats:
        if self._tiling and exceeds(frames.shape[3:], self._tiling):
            return encode_tiled(whole, frames, self._tiling)
        return whole(frames)

    def _sample(self, moments: Floats, noise: Floats | None) -> Floats:
        mean, logvar = np.split(moments[0].transpose(1, 0, 2, 3), 2, axis=1)
        if noise is not None:
            mean = mean + np.exp(0.5 * np.clip(logvar, -30, 20)) * noise  # the clamp of diffusers' posterior
        return np.ascontiguousarray(mean, np.float32)


def _chunks(x: Floats, first: int, later: int) -> Iterator[Floats]:
    yield np.ascontiguousarray(x[:, :, :first])
    for start in range(first, x.shape[2], later):
        yield np.ascontiguousarray(x[:, :, start : start + later])


def _stream(open_graph: _Open, name: str, chunks: Iterator[Floats]) -> Iterator[tuple[str, dict[str, Array]]]:
    results = open_graph("first").run({name: next(chunks)})
    # Each chunk's caches are written over those that it was given: there is one set of them, however long the clip.
    into = {key: value for key, value in results.items() if key.startswith("next_")}
    caches = {key.removeprefix("next_"): value for key, value in into.items()}
    yield "first", results
    del results  # whoever took the frames has them now
    plan: EnginePlan | None = None
    for chunk in chunks:
        plan = plan or open_graph("next")
        yield "next", plan.run({name: chunk, **caches}, into)


class _Graphs:
    """The checked graphs of a component, loaded where they are used and given up after: the memory of one at a time."""

    def __init__(self, bundle: Bundle, component: str, engine: str, threads: int | None, trust: Trust) -> None:
        self._bundle, self._component, self._engine, self._threads = bundle, component, engine, threads
        self._trust = trust
        check_component(bundle, component, engine)

    def open(self, name: str) -> EnginePlan:
        return open_graph(
            self._bundle, self._component, name, self._engine, self._threads, lean=True, trust=self._trust
        )
