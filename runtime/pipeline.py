"""Bundle → clip: ``load_pipeline(path).generate("a red circle moves left …")``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.bundle import TOKENIZER, Bundle
from reelquant.runtime.choose_engine import choose_engine
from reelquant.runtime.denoise import Condition, denoise
from reelquant.runtime.embeddings import EmbeddingCache
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.session import Session
from reelquant.runtime.errors import BadInput
from reelquant.runtime.images import from_model, to_model
from reelquant.runtime.latents import SUFFIX, SavedLatents
from reelquant.runtime.positions import LEARNED, position_inputs
from reelquant.runtime.progress import SILENT, Progress, Stopwatch
from reelquant.runtime.remake import pixels_digest
from reelquant.runtime.request import Request, Settings, settle
from reelquant.runtime.sizes import Size
from reelquant.runtime.tiles import tilings
from reelquant.runtime.tokenizer import Tokenizer
from reelquant.runtime.trust import OWN, Trust
from reelquant.runtime.vae import VaeDecoder, VaeEncoder
from reelquant.runtime.video import Clip, check_output

Floats = NDArray[np.float32]


class Pipeline:
    """A bundle loaded on an engine; one clip at a time.

    Networks are loaded when first used, and kept for the next clip, or with ``keep`` False given up after use, so that
    memory holds one at a time. The VAE's graphs are loaded for each use: their memory is needed elsewhere in between.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: EngineOptions | None = None,
        embeddings: str | os.PathLike[str] | None = None,
        tiled: bool = False,
        keep: bool = True,
    ) -> None:
        options = options or EngineOptions()
        self.engine, self.engine_note = choose_engine(bundle, options)
        self.options = replace(options, engine=self.engine.name, threads=options.cpu_threads())
        self.bundle, self.timer = bundle, Stopwatch()
        self._tiled, self._keep = tiled, keep
        self.engine.check_runs(bundle)
        if tiled:  # the decoder asks again, after the denoising
            tilings(bundle.manifest.vae, bundle.manifest.geometry.spatial)
        self._loaded: dict[str, Any] = {}
        manifest = bundle.manifest
        bundle.check_hashes(lambda name: name == TOKENIZER)
        self._cache = None
        if embeddings is not None:
            self._cache = EmbeddingCache(
                Path(embeddings), f"{bundle.component_digest('text_encoder')} {self.engine.name}"
            )
        self.tokenizer = Tokenizer.open(bundle.path / TOKENIZER, manifest.text_tokens)

    def settings(self, request: Request) -> Settings:
        """Fill in and check a request's choices, before any work is done.

        Raises:
            BadInput: a choice is not possible, or the model cannot read a prompt; the message says what is.
        """
        self.tokenizer.check(request.prompt)
        self.tokenizer.check(request.negative_prompt, allow_empty=True, name="the negative prompt")
        return settle(request, self.bundle)

    def generate(
        self, request: Request | str, progress: Progress = SILENT, keep: str | os.PathLike[str] | None = None
    ) -> Clip:
        """Make one clip. The same bundle, engine, seed and settings give the same bytes on the same machine.

        ``keep`` names a file for the latents, .npz, written before they are decoded; :meth:`decode_saved` takes it from
        there.

        Raises:
            BadInput: the request cannot be met.
            BundleError: a file of the bundle is damaged.
            AccuracyError: the result is not finite.
        """
        if isinstance(request, str):
            request = Request(request)
        if not isinstance(request, Request):
            raise BadInput(f"a {type(request).__name__} is no request; give a Request, or a prompt")
        if keep is not None:
            check_output(keep, (SUFFIX,))
        settings = self.settings(request)
        if "vae_decoder" not in self._loaded:  # it is loaded last, and after hours is late to find it damaged
            with self.timer("load"):
                self.bundle.check_hashes(lambda name: name.startswith("vae_decoder/"))
        latents = self.sample(request, settings, progress)
        provenance = self._provenance(request, settings)
        saved = SavedLatents(latents, self.bundle.component_digest("vae_decoder"), provenance)
        if keep is not None:
            saved.save(keep)
        return self.decode_saved(saved, progress)

    def _provenance(self, request: Request, settings: Settings) -> dict[str, Any]:
        """All that makes the clip again (:mod:`reelquant.runtime.remake`), as JSON."""
        manifest = self.bundle.manifest
        made: dict[str, Any] = {
            "generator": "reelquant",
            "version": metadata.version("reelquant"),
            "model": manifest.source.get("checkpoint"),
            "bundle": self.bundle.digest,
            "task": manifest.task,
            "precision": manifest.precision,
            **self._machinery(),
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "seed": settings.seed,
            "steps": settings.steps,
            "guidance": settings.guidance,
            "frames": settings.size.frames,
            "height": settings.size.height,
            "width": settings.size.width,
            "scheduler": request.scheduler,
        }
        for name, given, pixels in (("image", request.image, settings.image), ("video", request.video, settings.video)):
            if pixels is not None:
                path = os.path.abspath(given) if isinstance(given, str | os.PathLike) else None
                made[name] = {"path": path, "sha256": pixels_digest(pixels)}
        if settings.strength is not None:
            made["strength"] = settings.strength
        handed = ("latents", "image_noise", "step_noise")
        made["given"] = [name for name in handed if getattr(request, name) is not None]
        return made

    def _machinery(self) -> dict[str, Any]:
        """What besides bundle and request decides the frames' last bits, as the provenance says it."""
        engine = {"engine": self.engine.name, "engine_version": self.engine.version()}
        return {**engine, "threads": self.options.threads, "tiled": self._tiled}

    def decode_saved(self, saved: SavedLatents, progress: Progress = SILENT) -> Clip:
        """The clip of latents that this bundle, or one with the same VAE, sampled.

        Raises:
            BadInput: they are another VAE's, or of a shape that it cannot decode.
        """
        manifest = self.bundle.manifest
        frames, channels = saved.values.shape[:2]
        if saved.vae != self.bundle.component_digest("vae_decoder"):
            raise BadInput(
                f"these latents are of another VAE than that of {self.bundle.path}; use the bundle they are of"
            )
        if channels != manifest.geometry.latent_channels or frames < 3 or frames % 2 == 0:
            raise BadInput(f"latents of shape {list(saved.values.shape)} are not what this VAE decodes")
        made, here = saved.provenance, self._machinery()
        if not here.items() <= made.items():
            made = {**made, "decoded": here}
        return Clip(self.decode(saved.values, progress), manifest.defaults.fps, made)

    def sample(self, request: Request, settings: Settings, progress: Progress = SILENT) -> Floats:
        """Run text encoder, image encoder and all denoising steps; return scaled latents [latent_frames, channels, h, w]."""
        manifest = self.bundle.manifest
        scheduler = settings.scheduler
        rng = np.random.default_rng(settings.seed)
        shape = settings.size.sampled_shape(manifest.geometry)
        # CogVideoX 1.5 takes frames in pairs: what is missing goes before the clip and is cut off again.
        extra = shape[0] - settings.size.latent_frames(manifest.geometry)
        latents = _drawn(rng, shape, request.latents)
        image_latents = None
        # Everything that can be refused is refused before the transformer is loaded.
        text = self.encode_prompt(request.prompt, request.negative_prompt, settings.guidance > 1, progress)
        if settings.image is not None:
            image_latents = self._encode_image(settings.image, request.image_noise, shape, rng, progress)
        start = None
        if settings.video is not None:
            start = self._encode_video(settings.video, request.image_noise, settings.size, rng, progress)
        self._done_with("text_encoder", "vae_encoder")
        fixed = self._fixed_inputs(shape)
        condition = Condition(text, settings.guidance, manifest.defaults.dynamic_guidance, image_latents, fixed)
        transformer = self._session("transformer")
        with self.timer("denoise"), progress.stage("denoise", settings.steps - settings.skip) as advance:
            run = scheduler.begin(settings.steps, rng, _in_turn(request.step_noise), settings.skip)
            if start is not None:
                start = np.concatenate([start[:extra], start])
                latents = scheduler.add_noise(start, latents, int(run.timesteps[0]))
            sampled = denoise(transformer, run, latents * scheduler.init_noise_sigma, condition, advance)[extra:]
        del transformer
        self._done_with("transformer")
        return sampled

    def encode_prompt(
        self, prompt: str, negative: str = "", guided: bool = True, progress: Progress = SILENT
    ) -> Floats:
        """Return float32 [2, text_tokens, text_width], the negative prompt first, or [1, …] when not ``guided``.

        Prompts are encoded one by one, so that an embedding has the same bits whether it was kept or not.

        Raises:
            BadInput: the prompt is empty or too long, or what is missing could not be kept.
        """
        ids = [self.tokenizer.encode(prompt)]
        if guided:
            ids.insert(0, self.tokenizer.encode(negative, allow_empty=True))
        embeds = [self._cache.find(each) if self._cache else None for each in ids]
        missing = any(each is None for each in embeds)
        if missing and self._cache:
            self._cache.check()
        encoder = self._session("text_encoder") if missing else None
        with self.timer("text"), progress.stage("text", len(ids)) as advance:
            for i, each in enumerate(ids):
                if encoder is not None and embeds[i] is None:
                    embeds[i] = made = encoder.run({"input_ids": each[None]})["embeds"][0]
                    if self._cache:
                        self._cache.keep(each, made)
                advance()
        return np.stack([each for each in embeds if each is not None])

    def decode(self, latents: Floats, progress: Progress = SILENT) -> NDArray[np.uint8]:
        """Scaled latents → frames uint8 [frames, height, width, 3], chunk by chunk."""
        decoder: VaeDecoder = self._load("vae_decoder", lambda: VaeDecoder(self.bundle, self.options, self._tiled))
        size = Size.of_latents(latents.shape, self.bundle.manifest.geometry)
        frames = np.empty((size.frames, size.height, size.width, 3), np.uint8)
        with self.timer("decode"), progress.stage("decode", decoder.chunks(latents)) as advance:
            done = 0
            for chunk in decoder.decode(latents, advance):
                frames[done : done + chunk.shape[2]] = from_model(chunk, done)
                done += chunk.shape[2]
        return frames

    def replace_transformer(self, session: Session) -> None:
        """Denoise with ``session`` from now on; calibration puts its observed graph here."""
        self._loaded["transformer"] = session

    def _fixed_inputs(self, shape: tuple[int, ...]) -> dict[str, Floats]:
        """The transformer's inputs that no step changes, for latents of ``shape``."""
        manifest = self.bundle.manifest
        learned = self.bundle.path / LEARNED if LEARNED in manifest.files else None
        if learned:
            self.bundle.check_hashes(lambda name: name == LEARNED)
        fixed = position_inputs(manifest.transformer, manifest.text_tokens, shape, learned)
        if manifest.transformer.get("ofs_embed_dim"):
            fixed["ofs"] = np.full(1, 2, np.float32)  # the one value that the pipelines give it
        return fixed

    def _encode_image(
        self,
        image: NDArray[np.uint8],
        given: Floats | None,
        shape: tuple[int, ...],
        rng: np.random.Generator,
        progress: Progress,
    ) -> Floats:
        noise = _drawn(rng, (1, *shape[1:]), given)
        encoder = self._vae_encoder()
        with self.timer("encode"), progress.stage("encode", 1) as advance:
            latents = np.zeros(shape, np.float32)
            latents[:1] = encoder.encode_image(to_model(image[None]), noise)
            advance()
        return latents

    def _encode_video(
        self,
        video: NDArray[np.uint8],
        given: Floats | None,
        size: Size,
        rng: np.random.Generator,
        progress: Progress,
    ) -> Floats:
        noise = _drawn(rng, size.latent_shape(self.bundle.manifest.geometry), given)
        encoder = self._vae_encoder()
        with self.timer("encode"), progress.stage("encode", 1) as advance:
            latents: Floats = encoder.encode(to_model(video), noise)
            advance()
        return latents

    def _vae_encoder(self) -> VaeEncoder:
        encoder: VaeEncoder = self._load("vae_encoder", lambda: VaeEncoder(self.bundle, self.options, self._tiled))
        return encoder

    def _session(self, component: str) -> Session:
        def load() -> Session:
            return self.engine.open_component(self.bundle, component, self.options, "main")["main"]

        session: Session = self._load(component, load)
        return session

    def _done_with(self, *names: str) -> None:
        if not self._keep:
            for name in names:
                self._loaded.pop(name, None)

    def _load(self, name: str, load: Any) -> Any:
        if name not in self._loaded:
            with self.timer("load"):
                self._loaded[name] = load()
        return self._loaded[name]


def load_pipeline(
    bundle: str | os.PathLike[str],
    engine: str | None = None,
    threads: int | None = None,
    embeddings: str | os.PathLike[str] | None = None,
    tiled: bool = False,
    keep: bool = True,
    trust: Trust = OWN,
    device: int = 0,
) -> Pipeline:
    """Open a bundle folder on an engine, by default the one it was built for where that runs here (``engine_note`` says if not).

    ``threads``, ``device`` and ``trust`` are :class:`reelquant.runtime.engines.options.EngineOptions`'. Prompts' embeddings
    are kept in, and taken from, the folder ``embeddings``. ``tiled`` decodes large frames in tiles: less memory, a little
    more work, and a picture that differs slightly where tiles meet. ``keep`` False gives networks up after use: memory for
    one at a time.

    Raises:
        BundleError: not a bundle, or incomplete.
        BadInput: the engine is unknown, or cannot run the bundle here.
        MissingExtra: its package is not installed.
    """
    return Pipeline(Bundle.open(Path(bundle)), EngineOptions(engine, threads, device, trust), embeddings, tiled, keep)


def _in_turn(arrays: tuple[Floats, ...] | None) -> Callable[[tuple[int, ...]], Floats] | None:
    if arrays is None:
        return None
    left = iter(arrays)
    return lambda shape: np.ascontiguousarray(next(left), np.float32)


def _drawn(rng: np.random.Generator, shape: tuple[int, ...], given: Floats | None) -> Floats:
    """``given`` or else standard normal noise; drawn in either case, so that what is drawn next is the same."""
    drawn = rng.standard_normal(shape, dtype=np.float32)
    return drawn if given is None else np.ascontiguousarray(given, np.float32)
