"""Bundle → clip: ``load_pipeline(path).generate("a red circle moves left …")``.

The way of a request: :func:`~reelquant.runtime.request.resolve` → :func:`~reelquant.runtime.sampling.text.encode_text` →
:func:`~reelquant.runtime.sampling.conditioning.condition` → :func:`~reelquant.runtime.sampling.denoise.denoise` →
:class:`~reelquant.runtime.models.cogvideox.vae.VaeDecoder` → :class:`~reelquant.runtime.media.video.Clip`; each hands one value on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.bundle import TOKENIZER, Bundle
from reelquant.runtime.bundle.trust import OWN, Trust
from reelquant.runtime.engines.choose_engine import choose_engine
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.session import Session
from reelquant.runtime.errors import BadInput
from reelquant.runtime.media.images import from_model
from reelquant.runtime.media.stream import ClipStream, SavedClip
from reelquant.runtime.media.video import Clip
from reelquant.runtime.media.writers import check_output
from reelquant.runtime.models import model_of
from reelquant.runtime.models.cogvideox.stages import IMAGE, VIDEO, clip_stages
from reelquant.runtime.monitor import Monitor, OnStep
from reelquant.runtime.progress import SILENT, Progress
from reelquant.runtime.provenance import clip_provenance, machinery
from reelquant.runtime.request import Request, ResolvedRequest, resolve
from reelquant.runtime.sampling.conditioning import condition
from reelquant.runtime.sampling.denoise import denoise
from reelquant.runtime.sampling.denoiser import Conditioning
from reelquant.runtime.sampling.embeddings import EmbeddingCache
from reelquant.runtime.sampling.latents import SUFFIX, SavedLatents
from reelquant.runtime.sampling.networks import Networks
from reelquant.runtime.sampling.stepper import Work
from reelquant.runtime.sampling.text import encode_text, missing
from reelquant.runtime.sampling.tokenizer import Tokenizer
from reelquant.runtime.sizes import Size
from reelquant.runtime.tune.record import tuned_options

Floats = NDArray[np.float32]
Frames = NDArray[np.uint8]


class Pipeline:
    """A bundle loaded on an engine.

    It may be shared by threads: it makes one clip at a time, and others wait for it. Networks are loaded when first used, and
    kept for the next clip, or with ``keep`` False given up after use; where it is not said, they are kept if the GPU has the memory for all of
    them, or the engine computes on none. ``transformer`` is a session in the place of the
    bundle's: calibration puts its observed graph there. ``size`` is that of the clips to come, for the engine that is the
    fastest for it here.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: EngineOptions | None = None,
        embeddings: str | os.PathLike[str] | None = None,
        tiled: bool = False,
        keep: bool | None = None,
        transformer: Session | None = None,
        size: Size | None = None,
    ) -> None:
        self.bundle, self.model = bundle, model_of(bundle.manifest)
        options, tuned_note = tuned_options(bundle, options or EngineOptions(), size)
        self.engine, chosen_note = choose_engine(bundle, options)
        self.engine_note = "; ".join(note for note in (tuned_note, chosen_note) if note)
        self.options = replace(options, engine=self.engine.name, threads=options.cpu_threads())
        self.engine.check_runs(bundle)
        if tiled:  # the decoder asks again, after the denoising
            self.model.tilings()
        bundle.check_hashes(lambda name: name == TOKENIZER)
        self.tokenizer = Tokenizer.open(bundle.path / TOKENIZER, bundle.manifest.text_tokens)
        self._cache = None
        if embeddings is not None:
            encoder = f"{bundle.component_digest('text_encoder')} {self.engine.name}"
            self._cache = EmbeddingCache(Path(embeddings), encoder)
        self._tiled = tiled
        self._networks = Networks(bundle, self.engine, self.options, tiled, keep, transformer)
        self._lock = Lock()

    @property
    def loaded(self) -> frozenset[str]:
        """The networks that are in memory now, such as "text_encoder"."""
        return self._networks.loaded

    def with_transformer(self, session: Session) -> Pipeline:
        """Another pipeline of the same bundle on the same engine, with ``session`` in the place of the transformer."""
        return Pipeline(self.bundle, self.options, tiled=self._tiled, transformer=session)

    def resolve(self, request: Request | ResolvedRequest | str) -> ResolvedRequest:
        """Fill in and check a request's choices, before any work is done.

        Raises:
            BadInput: a choice is not possible, or the model cannot read a prompt; the message says what is.
        """
        if isinstance(request, ResolvedRequest):
            return request
        request = Request(request) if isinstance(request, str) else request
        if not isinstance(request, Request):
            raise BadInput(f"a {type(request).__name__} is no request; give a Request, or a prompt")
        self.tokenizer.check(request.prompt)
        self.tokenizer.check(request.negative_prompt, allow_empty=True, name="the negative prompt")
        return resolve(request, self.bundle)

    def generate(
        self,
        request: Request | ResolvedRequest | str,
        progress: Progress = SILENT,
        keep: str | os.PathLike[str] | None = None,
        on_step: OnStep | None = None,
    ) -> Clip:
        """Make one clip; its ``seconds`` say what each stage took. The same bundle, engine, seed and settings give the same
        bytes on the same machine.

        ``keep`` names a file for the latents, .npz, written before they are decoded; :meth:`decode_saved` takes it from
        there. ``on_step(stage, done, total)`` is called after each step of each stage; what it raises ends the clip.

        Raises:
            BadInput: the request cannot be met.
            BundleError: a file of the bundle is damaged.
            AccuracyError: the result is not finite.
        """
        resolved, monitor = self.resolve(request), Monitor(progress, on_step)
        with self._lock:
            return self._stream(resolved, monitor, keep).clip()

    def render(
        self,
        request: Request | ResolvedRequest | str,
        output: str | os.PathLike[str],
        progress: Progress = SILENT,
        keep: str | os.PathLike[str] | None = None,
        on_step: OnStep | None = None,
        note: Mapping[str, object] | None = None,
    ) -> SavedClip:
        """As :meth:`generate`, into the file ``output``, which is written while later frames are decoded: memory does not grow with
        the clip's length. ``note`` is added to what the clip says of its making.

        Raises:
            BadInput: the request cannot be met, or ``output`` cannot be written; and as :meth:`generate`.
        """
        check_output(output)
        resolved, monitor = self.resolve(request), Monitor(progress, on_step)
        with self._lock:
            return self._stream(resolved, monitor, keep).save(output, note)

    def decode_saved(self, saved: SavedLatents, progress: Progress = SILENT, on_step: OnStep | None = None) -> Clip:
        """The clip of latents that this bundle, or one with the same VAE, sampled.

        Raises:
            BadInput: they are another VAE's, or of a shape that it cannot decode.
        """
        self._check_saved(saved)
        with self._lock:
            self._make_room_to_decode(saved.values)
            return self._decoded(saved, Monitor(progress, on_step)).clip()

    def render_saved(
        self,
        saved: SavedLatents,
        output: str | os.PathLike[str],
        progress: Progress = SILENT,
        on_step: OnStep | None = None,
    ) -> SavedClip:
        """As :meth:`decode_saved`, into the file ``output``, as :meth:`render` does.

        Raises:
            BadInput: as :meth:`decode_saved`, or ``output`` cannot be written.
        """
        check_output(output)
        self._check_saved(saved)
        with self._lock:
            self._make_room_to_decode(saved.values)
            return self._decoded(saved, Monitor(progress, on_step)).save(output)

    def sample(self, request: Request | ResolvedRequest | str, monitor: Monitor | None = None) -> Floats:
        """Run text encoder, image encoder and all denoising steps; return scaled latents [latent_frames, channels, h, w].

        Raises:
            BadInput: the request cannot be met; and as :meth:`generate`.
        """
        resolved = self.resolve(request)
        with self._lock:
            self._make_room(resolved, but=("vae_decoder",))
            return self._sample(resolved, monitor or Monitor())

    def prepare(self, request: Request | ResolvedRequest | str, monitor: Monitor | None = None) -> Conditioning:
        """Run text and image encoder; return all that the denoising of the clip starts from.

        Raises:
            BadInput: the request cannot be met.
        """
        resolved = self.resolve(request)
        with self._lock:
            self._make_room(resolved, but=("transformer", "vae_decoder"))
            return self._prepare(resolved, monitor or Monitor())

    def transformer(self, monitor: Monitor | None = None) -> Session:
        """The transformer, loaded: for those who go through the steps of a clip themselves."""
        return self._networks.transformer(monitor or Monitor())

    def encode_prompt(
        self, prompt: str, negative: str = "", guided: bool = True, monitor: Monitor | None = None
    ) -> Floats:
        """Return float32 [2, text_tokens, text_width], the negative prompt first, or [1, …] when not ``guided``.

        Raises:
            BadInput: the prompt is empty or too long, or what is missing could not be kept.
        """
        with self._lock:
            return self._encode_text([negative, prompt] if guided else [prompt], monitor or Monitor())

    def decode(self, latents: Floats, monitor: Monitor | None = None) -> Frames:
        """Scaled latents [latent_frames, channels, h, w] → frames uint8 [frames, height, width, 3]."""
        with self._lock:
            self._make_room_to_decode(latents)
            return self._streamed(latents, monitor or Monitor(), {}).clip().frames

    def iter_frames(self, latents: Floats, monitor: Monitor | None = None) -> Iterator[Frames]:
        """As :meth:`decode`, chunk by chunk: each is given while the next is still latents. No other clip is made before the
        last is taken, or the iterator closed.
        """
        with self._lock:
            self._make_room_to_decode(latents)
            yield from self._chunks(latents, monitor or Monitor())

    def _check_saved(self, saved: SavedLatents) -> None:
        if saved.vae != self.bundle.component_digest("vae_decoder"):
            raise BadInput(
                f"these latents are of another VAE than that of {self.bundle.path}; use the bundle they are of"
            )
        if not self.model.decodes(saved.values.shape):
            raise BadInput(f"latents of shape {list(saved.values.shape)} are not what this VAE decodes")

    def _prepare(self, resolved: ResolvedRequest, monitor: Monitor) -> Conditioning:
        text = self._encode_text(resolved.prompts, monitor)
        self._networks.done_with("text_encoder")
        return condition(resolved, text, self.bundle, self._networks, monitor)

    def _sample(self, resolved: ResolvedRequest, monitor: Monitor, work: Work | None = None) -> Floats:
        # Everything that can be refused is refused before the transformer is loaded.
        conditioning = self._prepare(resolved, monitor)
        self._networks.done_with("vae_encoder")
        transformer = self._networks.transformer(monitor)
        with monitor.stage("denoise", len(conditioning.run.timesteps)) as advance:
            latents = denoise(transformer, conditioning, advance, resolved.schedule, work)
        del transformer
        self._networks.done_with("transformer")
        return latents[-self.model.geometry.latent_frames(resolved.size) :]

    def _encode_text(self, prompts: list[str], monitor: Monitor) -> Floats:
        return encode_text(prompts, self.tokenizer, self._cache, lambda: self._networks.text_encoder(monitor), monitor)

    def _stream(
        self, resolved: ResolvedRequest, monitor: Monitor, keep: str | os.PathLike[str] | None = None
    ) -> ClipStream:
        """The clip, sampled, and about to be decoded."""
        if keep is not None:
            check_output(keep, (SUFFIX,))
        self._make_room(resolved)
        self._networks.check_decoder(monitor)
        work = Work()
        latents = self._sample(resolved, monitor, work)
        provenance = clip_provenance(resolved, self.bundle, self._machinery(), work)
        saved = SavedLatents(latents, self.bundle.component_digest("vae_decoder"), provenance)
        if keep is not None:
            saved.save(keep)
        return self._decoded(saved, monitor)

    def _make_room(self, resolved: ResolvedRequest, but: tuple[str, ...] = ()) -> None:
        """See that the engine's device has the memory for a clip, or for its stages ``but`` some.

        Raises:
            BadInput: it has not; the message says what would fit.
        """
        prompts = missing(resolved.prompts, self.tokenizer, self._cache)
        source = IMAGE if resolved.image is not None else VIDEO if resolved.video is not None else None
        stages = clip_stages(self.model, resolved.size, prompts, tiled=self._tiled, source=source)
        self._networks.make_room(resolved.size, [stage for stage in stages if stage.component not in but])

    def _make_room_to_decode(self, latents: Floats) -> None:
        """As :meth:`_make_room`, of the decoder alone."""
        size = self.model.geometry.size_of(latents.shape)
        self._networks.make_room(size, clip_stages(self.model, size, tiled=self._tiled)[-1:])

    def _decoded(self, saved: SavedLatents, monitor: Monitor) -> ClipStream:
        made, here = saved.provenance, self._machinery()
        if not here.items() <= made.items():
            made = {**made, "decoded": here}
        return self._streamed(saved.values, monitor, made)

    def _streamed(self, latents: Floats, monitor: Monitor, provenance: dict[str, Any]) -> ClipStream:
        size, fps = self.model.geometry.size_of(latents.shape), self.bundle.manifest.defaults.fps
        return ClipStream(self._chunks(latents, monitor), size, fps, provenance, lambda: monitor.seconds)

    def _chunks(self, latents: Floats, monitor: Monitor) -> Iterator[Frames]:
        decoder = self._networks.vae_decoder(monitor)
        with monitor.stage("decode", decoder.chunks(latents)) as advance:
            done = 0
            for chunk in decoder.decode(latents, advance):
                yield from_model(chunk, done)
                done += chunk.shape[2]

    def _machinery(self) -> dict[str, object]:
        return machinery(self.engine, self.options, self._tiled)


def load_pipeline(
    bundle: str | os.PathLike[str],
    engine: str | None = None,
    threads: int | None = None,
    embeddings: str | os.PathLike[str] | None = None,
    tiled: bool = False,
    keep: bool | None = None,
    trust: Trust = OWN,
    device: int = 0,
) -> Pipeline:
    """Open a bundle folder on an engine, by default the one it was built for where that runs here (``engine_note`` says if not).

    ``threads``, ``device`` and ``trust`` are :class:`reelquant.runtime.engines.options.EngineOptions`'. Prompts' embeddings
    are kept in, and taken from, the folder ``embeddings``. ``tiled`` decodes large frames in tiles: less memory, a little
    more work, and a picture that differs slightly where tiles meet. ``keep`` False gives networks up after use: memory for
    one at a time; None is as a GPU's memory allows, and with them kept on a CPU.

    Raises:
        BundleError: not a bundle, or incomplete.
        BadInput: the engine is unknown, or cannot run the bundle here.
        MissingExtra: its package is not installed.
    """
    return Pipeline(Bundle.open(Path(bundle)), EngineOptions(engine, threads, device, trust), embeddings, tiled, keep)
