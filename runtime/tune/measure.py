"""Try every way to run a bundle here that may be the fastest, and say what a clip takes with each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.choose_engine import why_not
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.engines.registry import engine_names, get_engine
from reelquant.runtime.engines.session import Session
from reelquant.runtime.errors import BadInput, ReelquantError
from reelquant.runtime.machine.cpu_units import physical_cores, usable_cores
from reelquant.runtime.machine.memory import available_memory
from reelquant.runtime.models import model_of
from reelquant.runtime.models.cogvideox.vae import VaeDecoder
from reelquant.runtime.progress import SILENT, Progress
from reelquant.runtime.sampling.denoiser import Denoiser
from reelquant.runtime.sizes import Size
from reelquant.runtime.tune.record import Tuned
from reelquant.runtime.tune.timing import step_feeds

_FEWEST, _MOST = 2, 20  # timed steps of each candidate
_TILE = 64  # pixels a side: decoding takes as long per pixel whatever the size


@dataclass(frozen=True)
class Candidate:
    """A way to run a bundle: as :class:`reelquant.runtime.tune.record.Tuned`."""

    engine: str
    threads: int | None
    batch: int

    def options(self) -> EngineOptions:
        return EngineOptions(self.engine, self.threads, batch=self.batch)


@dataclass(frozen=True)
class Measured:
    """What was found of a candidate: medians of seconds, for the size that was asked. ``failed`` says why nothing was."""

    candidate: Candidate
    version: str
    step_seconds: float = 0.0
    decode_seconds: float = 0.0
    clip_seconds: float = 0.0
    failed: str = ""

    def as_json(self) -> dict[str, object]:
        return {**asdict(self.candidate), **{k: v for k, v in asdict(self).items() if k != "candidate"}}

    def tuned(self, size: Size) -> Tuned:
        """As it is remembered."""
        each = self.candidate
        return Tuned(str(size), each.engine, self.version, each.threads, each.batch, self.clip_seconds)


def candidates(bundle: Bundle) -> tuple[Candidate, ...]:
    """Every engine that can run ``bundle`` here, with the CPU's threads and the batches that differ.

    Raises:
        BadInput: none can.
    """
    batches = (2, 1) if bundle.manifest.defaults.guidance > 1 else (1,)
    found = []
    for name in engine_names():
        if why_not(bundle, name) is None and get_engine(name).report().usable and _opens(bundle, name):
            found += [Candidate(name, threads, batch) for threads in _threads() for batch in batches]
    if not found:
        raise BadInput(f"no engine can run {bundle.path} here; see: reelquant doctor {bundle.path}")
    return tuple(found)


def measure(
    bundle: Bundle, size: Size, tried: tuple[Candidate, ...], seconds: float, progress: Progress = SILENT
) -> list[Measured]:
    """Measure each of ``tried`` for clips of ``size``, in about ``seconds`` together; the fastest is the first, failed ones the last.

    Where a step of the whole clip takes too long for that, a clip of fewer frames is measured, and its time is scaled by the
    operations of both (:func:`operations`). At least two steps are timed of each, however long they take.

    Raises:
        BadInput: all failed.
        BundleError: a file of the bundle was changed.
    """
    bundle.check_hashes(lambda name: name.startswith(("transformer/", "vae_decoder/")))
    share, found = seconds / len(tried), list[Measured]()
    decoding: dict[tuple[str, int | None], float] = {}  # which no batch changes
    with progress.stage("tune", len(tried)) as advance:
        for candidate in tried:
            version = get_engine(candidate.engine).version()
            try:
                _check_memory(bundle, candidate)
                step, way = _step_seconds(bundle, size, candidate, share), (candidate.engine, candidate.threads)
                if way not in decoding:
                    decoding[way] = _decode_seconds(bundle, size, candidate)
                clip = bundle.manifest.defaults.steps * step + decoding[way]
                found.append(Measured(candidate, version, step, decoding[way], clip))
            except ReelquantError as error:
                found.append(Measured(candidate, version, failed=str(error)))
            advance()
    found.sort(key=lambda each: (bool(each.failed), each.clip_seconds))
    if found[0].failed:
        raise BadInput(f"nothing that was tried runs {bundle.path}; {found[0].candidate.engine}: {found[0].failed}")
    return found


def operations(bundle: Bundle, size: Size) -> float:
    """A number that one step's floating-point operations are in proportion to: of N tokens of width D, 6·D·N for linears and N²
    for attention (24·N·D² and 4·N²·D for each layer).
    """
    model = model_of(bundle.manifest)
    tokens, width = model.attention_tokens(size), model.heads * model.head_dim
    return float(6 * width * tokens + tokens**2)


def _threads() -> tuple[int | None, ...]:
    """The engine's own choice; and one for each core where a core has two threads and the engine could take either."""
    cores, physical = usable_cores(), physical_cores()
    return (None, cores) if physical is not None and physical < cores else (None,)


def _opens(bundle: Bundle, name: str) -> bool:
    return get_engine(name).runs_onnx or name in bundle.manifest.engines


def _check_memory(bundle: Bundle, candidate: Candidate) -> None:
    """Raises:
    BadInput: the weights alone would not fit into what is left.
    """
    held, left = get_engine(candidate.engine).memory, available_memory()
    if held is None or left is None:
        return
    weights = sum(entry.size for name, entry in bundle.manifest.files.items() if name.startswith("transformer/"))
    model = held.quantized if bundle.manifest.components["transformer"].formats else held.high
    needed = int(model.weights * weights)
    if needed > left:
        raise BadInput(f"its weights take {needed / 1e9:.1f} GB there, and {left / 1e9:.1f} GB are left")


def _step_seconds(bundle: Bundle, size: Size, candidate: Candidate, seconds: float) -> float:
    """Of one guided step of a clip of ``size``, measured in about ``seconds``."""
    session = get_engine(candidate.engine).open(bundle, "transformer", "main", candidate.options())
    measured = _size_to_measure(bundle, size, session, candidate, seconds)
    step = _step(bundle, measured, session)
    _seconds(step)  # compiles it
    count = min(_MOST, max(_FEWEST, int(seconds / _seconds(step))))
    taken = statistics.median(_seconds(step) for _ in range(count))
    return taken * operations(bundle, size) / operations(bundle, measured)


def _size_to_measure(bundle: Bundle, size: Size, session: Session, candidate: Candidate, seconds: float) -> Size:
    """``size``, or that of a clip of the fewest frames where steps of the whole would take too long."""
    short = replace(size, frames=model_of(bundle.manifest).geometry.frame_step + 1)
    if short == size or not get_engine(candidate.engine).runs_onnx:  # an engine built ahead is for its own sizes
        return size
    step = _step(bundle, short, session)
    _seconds(step)
    longer = operations(bundle, size) / operations(bundle, short)
    return size if _seconds(step) * longer * (_FEWEST + 1) < seconds else short


def _step(bundle: Bundle, size: Size, session: Session) -> Callable[[], object]:
    """A guided step of a clip of ``size``, on random values; where the bundle's guidance is off, half of one."""
    feeds = dict(step_feeds(bundle, size))
    rows = 2 if bundle.manifest.defaults.guidance > 1 else 1
    latents, text, image = feeds.pop("latents")[0], feeds.pop("text")[:rows], feeds.pop("image_latents")[0]
    timestep = int(feeds.pop("timestep")[0])
    denoiser = Denoiser(session, text, image if bundle.manifest.task == "i2v" else None, feeds)
    return lambda: denoiser.velocity(latents, timestep)


def _decode_seconds(bundle: Bundle, size: Size, candidate: Candidate) -> float:
    """Of the frames of a clip of ``size``: both graphs of the decoder are timed on a small frame, and scaled by its pixels. None of a
    bundle without one.
    """
    if "vae_decoder" not in bundle.manifest.components:
        return 0.0
    decoder = VaeDecoder(bundle, candidate.options(), keep=True)
    geometry = model_of(bundle.manifest).geometry
    small = replace(size, frames=min(size.frames, 1 + 2 * 2 * geometry.temporal))
    if get_engine(candidate.engine).runs_onnx:
        small = replace(small, height=min(size.height, _TILE), width=min(size.width, _TILE))
    latents = np.random.default_rng(0).standard_normal(geometry.latent_shape(small), dtype=np.float32)
    for _ in decoder.decode(latents):  # compiles both graphs
        pass
    began, taken = time.perf_counter(), []
    for _ in decoder.decode(latents):
        taken.append(time.perf_counter() - began)
        began = time.perf_counter()
    chunks = (geometry.latent_frames(size) - 1) // 2
    area = size.height * size.width / (small.height * small.width)
    return (taken[0] + (chunks - 1) * taken[-1]) * area


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
