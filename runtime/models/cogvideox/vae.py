"""The causal 3D VAE as a stream: chunks in, chunks out, caches carried between them, memory flat in clip length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.choose_engine import choose_engine
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.session import Array, Session, Value
from reelquant.runtime.models import model_of
from reelquant.runtime.models.cogvideox.tiles import decode_tiled, encode_tiled, exceeds, tile_count

Floats = NDArray[np.float32]
NEXT_CACHE = "next_cache."  # an output ``next_cache.X`` is what the next chunk is fed as ``cache.X``
_Open = Callable[[str], Session]


class VaeDecoder:
    """Scaled latents → frames. The first chunk is three latent frames (nine frames), each later one two (eight).

    With ``tiled``, frames larger than half of the VAE's own size are decoded in tiles, in the memory of one. With ``keep`` its
    graphs stay loaded for the next clip, but for what a run needs. ``graphs`` are loaded ones by name, in place of the bundle's;
    they may answer more.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: EngineOptions,
        tiled: bool = False,
        graphs: Mapping[str, Session] | None = None,
        keep: bool = False,
    ) -> None:
        own = _Graphs(bundle, "vae_decoder", options, keep).open
        self._open: _Open = own if graphs is None else graphs.__getitem__
        model = model_of(bundle.manifest)
        self._tiling = model.tilings() if tiled else None
        self._scale = np.float32(1 / model.scale)

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
        """Of each chunk of :meth:`decode`'s latents the graph that ran, "first" or "next", and all that it answered but the
        caches.
        """
        chunks = _chunks(latents.transpose(1, 0, 2, 3)[None], 3, 2)
        return _stream(self._open, "latents", (chunk * self._scale for chunk in chunks))

    def _whole(self, latents: Floats) -> Iterator[Floats]:
        return (results.pop("frames") for _, results in self.results(latents))


class VaeEncoder:
    """Frames → scaled latents. A still image is a stream of one frame; ``tiled`` and ``keep`` are as the decoder's."""

    def __init__(self, bundle: Bundle, options: EngineOptions, tiled: bool = False, keep: bool = False) -> None:
        self._graphs = _Graphs(bundle, "vae_encoder", options, keep)
        model = model_of(bundle.manifest)
        self._tiling = model.tilings("encoder") if tiled else None
        self._scale, self._image_scale = np.float32(model.scale), np.float32(model.image_scale)

    def encode_image(self, image: Floats, noise: Floats | None = None) -> Floats:
        """Return scaled latents [1, channels, h, w] of an image [1, 3, 1, height, width].

        ``noise``, of the latents' shape, samples the posterior as the pipelines do; without it its mean is returned.
        """

        session = self._graphs.open("image")

        def whole(tile: Floats) -> Floats:
            return np.asarray(session.run({"frames": tile})["moments"])

        moments = self._moments(whole, image)
        session.rest()
        return self._sample(moments, noise) * self._image_scale

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
    session = open_graph("first")
    results, kept = session.run_keeping({name: next(chunks)}, _is_cache)
    session.rest()
    del session
    yield "first", results
    del results  # whoever took the frames has them now
    later: Session | None = None
    try:
        for chunk in chunks:
            later = later or open_graph("next")
            fed: dict[str, Value] = {key.removeprefix("next_"): value for key, value in kept.items()}
            # Each chunk's caches are written over those that it was given: there is one set of them, however long the clip.
            results, kept = later.run_keeping({name: chunk, **fed}, _is_cache, kept)
            yield "next", results
            del results
    finally:
        if later is not None:
            later.rest()


def _is_cache(output: str) -> bool:
    return output.startswith(NEXT_CACHE)


class _Graphs:
    """The checked graphs of a component, loaded where they are used and then given up, for the memory of one at a time, or
    with ``keep`` kept: an engine that compiles when it loads may need longer for that than for a small clip's frames. An engine that is not quick to
    load keeps them as long as this lives, through all tiles of a clip.
    """

    def __init__(self, bundle: Bundle, component: str, options: EngineOptions, keep: bool) -> None:
        self._bundle, self._component, self._options = bundle, component, options
        self._engine, _ = choose_engine(bundle, options)
        self._kept: dict[str, Session] | None = {} if keep or not self._engine.quick_to_load else None
        self._engine.check_files(bundle, component)

    def open(self, name: str) -> Session:
        if self._kept is not None and name in self._kept:
            return self._kept[name]
        session = self._engine.open(self._bundle, self._component, name, self._options, lean=True)
        if self._kept is not None:
            self._kept[name] = session
        return session
