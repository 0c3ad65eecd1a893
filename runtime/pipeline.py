"""Bundle → clip: ``load_pipeline(path).generate("a red circle moves left …")``."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.bundle import TOKENIZER, Bundle
from reelquant.runtime.denoise import Condition, denoise, text_and_video_tables
from reelquant.runtime.engine import DEFAULT_ENGINE, Plan, check_engine
from reelquant.runtime.errors import BadInput
from reelquant.runtime.images import from_model, load_image, to_model
from reelquant.runtime.progress import SILENT, Progress, Stopwatch
from reelquant.runtime.schedulers import scheduler_from_config, with_class
from reelquant.runtime.sizes import Size, checked
from reelquant.runtime.tokenizer import Tokenizer
from reelquant.runtime.vae import VaeDecoder, VaeEncoder
from reelquant.runtime.video import Clip

Floats = NDArray[np.float32]
N = TypeVar("N", int, float)
MAX_STEPS = 1000


@dataclass(frozen=True)
class Request:
    """One clip to make; whatever is None comes from the bundle's defaults.

    ``latents`` [latent_frames, channels, h, w] and ``image_noise`` [1, channels, h, w] replace what the seed would
    draw, for those who compare with another implementation.
    """

    prompt: str
    image: Path | NDArray[np.uint8] | None = None
    negative_prompt: str = ""
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    scheduler: str | None = None
    latents: Floats | None = field(default=None, repr=False)
    image_noise: Floats | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Settings:
    """A request with every choice made and checked."""

    size: Size
    steps: int
    guidance: float
    seed: int


class Pipeline:
    """A bundle loaded on an engine. Networks are loaded when first used and kept; one clip at a time."""

    def __init__(self, bundle: Bundle, engine: str = DEFAULT_ENGINE, threads: int | None = None) -> None:
        self.bundle, self.engine, self.timer = bundle, check_engine(engine), Stopwatch()
        self._threads = threads
        self._loaded: dict[str, Any] = {}
        manifest = bundle.manifest
        bundle.check_hashes(lambda name: name == TOKENIZER)
        self.tokenizer = Tokenizer.open(bundle.path / TOKENIZER, manifest.text_tokens)

    def settings(self, request: Request) -> Settings:
        """Fill in and check a request's choices, before any work is done.

        Raises:
            BadInput: a choice is not possible; the message says what is.
        """
        manifest = self.bundle.manifest
        defaults = manifest.defaults
        size = Size(
            frames=_chosen(request.frames, defaults.frames),
            height=_chosen(request.height, defaults.height),
            width=_chosen(request.width, defaults.width),
        )
        steps = _chosen(request.steps, defaults.steps)
        guidance = _chosen(request.guidance, defaults.guidance)
        if not 1 <= steps <= MAX_STEPS:
            raise BadInput(f"{steps} steps is not from 1 to {MAX_STEPS}; {defaults.steps} is this bundle's default")
        if not (0 <= guidance <= 100):
            raise BadInput(f"guidance {guidance} is not from 0 to 100; 6 is usual, and 1 or less turns it off")
        if manifest.task == "i2v" and request.image is None:
            raise BadInput(f"{self.bundle.path} makes clips from an image; give one with --image FILE")
        if manifest.task == "t2v" and request.image is not None:
            raise BadInput(f"{self.bundle.path} makes clips from text alone; leave out --image, or use an i2v bundle")
        seed = secrets.randbits(32) if request.seed is None else request.seed
        if not 0 <= seed < 2**64:
            raise BadInput(f"seed {seed} is not from 0 to 2^64 - 1; choose another, or leave it out for a random one")
        return Settings(checked(size, manifest.geometry), steps, guidance, seed)

    def generate(self, request: Request | str, progress: Progress = SILENT) -> Clip:
        """Make one clip. The same bundle, engine, seed and settings give the same bytes on the same machine.

        Raises:
            BadInput: the request cannot be met.
            BundleError: a file of the bundle is damaged.
            AccuracyError: the result is not finite.
        """
        if isinstance(request, str):
            request = Request(request)
        settings = self.settings(request)
        if "vae_decoder" not in self._loaded:  # it is loaded last, and after hours is late to find it damaged
            with self.timer("load"):
                self.bundle.check_hashes(lambda name: name.startswith("vae_decoder/"))
        latents = self.sample(request, settings, progress)
        frames = self.decode(latents, progress)
        manifest = self.bundle.manifest
        provenance = {
            "generator": "reelquant",
            "model": manifest.source.get("checkpoint"),
            "bundle": self.bundle.digest,
            "task": manifest.task,
            "precision": manifest.precision,
            "engine": self.engine,
            "prompt": request.prompt,
            "seed": settings.seed,
            "steps": settings.steps,
            "guidance": settings.guidance,
        }
        return Clip(frames, manifest.defaults.fps, provenance)

    def sample(self, request: Request, settings: Settings, progress: Progress = SILENT) -> Floats:
        """Run text encoder, image encoder and all denoising steps; return scaled latents [latent_frames, channels, h, w]."""
        manifest = self.bundle.manifest
        config = manifest.scheduler if request.scheduler is None else with_class(manifest.scheduler, request.scheduler)
        scheduler = scheduler_from_config(config)
        rng = np.random.default_rng(settings.seed)
        shape = settings.size.latent_shape(manifest.geometry)
        drawn = rng.standard_normal(shape, dtype=np.float32)
        latents = drawn if request.latents is None else _same_shape(request.latents, shape)
        image_latents = None
        # Everything that can be refused is refused before the transformer is loaded.
        text = self.encode_prompt(request.prompt, request.negative_prompt, settings.guidance > 1, progress)
        if request.image is not None:
            image_latents = self._encode_image(request, settings.size, rng, progress)
        condition = Condition(text, settings.guidance, manifest.defaults.dynamic_guidance, image_latents)
        tables = text_and_video_tables(manifest.transformer, manifest.text_tokens, shape)
        transformer = self._plan("transformer")
        with self.timer("denoise"), progress.stage("denoise", settings.steps) as advance:
            run = scheduler.begin(settings.steps, rng)
            return denoise(transformer, run, latents * scheduler.init_noise_sigma, condition, tables, advance)

    def encode_prompt(
        self, prompt: str, negative: str = "", guided: bool = True, progress: Progress = SILENT
    ) -> Floats:
        """Return float32 [2, text_tokens, text_width], the negative prompt first, or [1, …] when not ``guided``.

        Raises:
            BadInput: the prompt is empty or too long.
        """
        ids = [self.tokenizer.encode(prompt)]
        if guided:
            ids.insert(0, self.tokenizer.encode(negative, allow_empty=True))
        encoder = self._plan("text_encoder")
        with self.timer("text"), progress.stage("text", 1) as advance:
            embeds: Floats = encoder.run({"input_ids": np.stack(ids)})["embeds"]
            advance()
        return embeds

    def decode(self, latents: Floats, progress: Progress = SILENT) -> NDArray[np.uint8]:
        """Scaled latents → frames uint8 [frames, height, width, 3], chunk by chunk."""
        decoder = self._load("vae_decoder", lambda: VaeDecoder(self.bundle, self.engine, self._threads))
        with self.timer("decode"), progress.stage("decode", (len(latents) - 1) // 2) as advance:
            chunks = []
            for chunk in decoder.decode(latents):
                chunks.append(from_model(chunk))
                advance()
            return np.concatenate(chunks)

    def replace_transformer(self, plan: Plan) -> None:
        """Denoise with ``plan`` from now on; calibration puts its observed graph here."""
        self._loaded["transformer"] = plan

    def _encode_image(self, request: Request, size: Size, rng: np.random.Generator, progress: Progress) -> Floats:
        image = request.image
        if isinstance(image, Path):
            image = load_image(image, size.height, size.width)
        if image is None or image.shape != (size.height, size.width, 3):
            raise BadInput(f"the image array is not uint8 [{size.height}, {size.width}, 3]")
        shape = size.latent_shape(self.bundle.manifest.geometry)
        drawn = rng.standard_normal((1, *shape[1:]), dtype=np.float32)
        noise = drawn if request.image_noise is None else _same_shape(request.image_noise, (1, *shape[1:]))
        encoder = self._load(
            "vae_encoder", lambda: VaeEncoder(self.bundle, self.engine, "image", threads=self._threads)
        )
        with self.timer("encode"), progress.stage("encode", 1) as advance:
            latents = np.zeros(shape, np.float32)
            latents[:1] = encoder.encode_image(to_model(image), noise)
            advance()
        return latents

    def _plan(self, component: str) -> Plan:
        def load() -> Plan:
            return self.bundle.open_graphs(component, self.engine, "main", threads=self._threads)["main"]

        plan: Plan = self._load(component, load)
        return plan

    def _load(self, name: str, load: Any) -> Any:
        if name not in self._loaded:
            with self.timer("load"):
                self._loaded[name] = load()
        return self._loaded[name]


def load_pipeline(bundle: str | Path, engine: str = DEFAULT_ENGINE, threads: int | None = None) -> Pipeline:
    """Open a bundle folder on an engine.

    Raises:
        BundleError: not a bundle, or incomplete.
        BadInput: the engine is unknown.
    """
    return Pipeline(Bundle.open(Path(bundle)), engine, threads)


def _chosen(wanted: N | None, default: N) -> N:
    return default if wanted is None else wanted


def _same_shape(array: Floats, shape: tuple[int, ...]) -> Floats:
    if array.shape != shape:
        raise ValueError(f"array of shape {array.shape} where {shape} is needed")
    return np.ascontiguousarray(array, np.float32)
