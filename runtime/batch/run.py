"""The clips of a batch, made: text first, then each clip, in one process or several."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Thread

from reelquant.runtime.batch.jobs import DIGEST, Job, is_made
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.errors import AccuracyError, BadInput, EngineError
from reelquant.runtime.files.atomic import scratch_folder
from reelquant.runtime.machine.cpu_units import usable_cores
from reelquant.runtime.media.writers import check_output
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.progress import SILENT, Progress


@dataclass(frozen=True)
class Made:
    """One clip of a batch. ``seconds`` is what it took, None of one that was there before; ``failed`` says why there is none."""

    name: str
    file: str
    seconds: float | None = None
    forwards: int | None = None
    sha256: str | None = None
    flaws: tuple[str, ...] = ()
    failed: str | None = None


@dataclass(frozen=True)
class Batch:
    """What all clips of a batch share: where they go, and how the bundle is run. ``workers`` are processes."""

    bundle: Path
    out: Path
    suffix: str = ".mp4"
    options: EngineOptions = field(default_factory=EngineOptions)
    tiled: bool = False
    workers: int = 1

    def file(self, job: Job) -> Path:
        return self.out / f"{job.name}{self.suffix}"

    def pipeline(self, embeddings: Path | None = None) -> Pipeline:
        return Pipeline(Bundle.open(self.bundle), self.options, embeddings, self.tiled)


@dataclass(frozen=True)
class Planned:
    """The jobs that are still to be made, each with its digest, and the names of those that are made."""

    pending: tuple[tuple[Job, str], ...]
    made: tuple[str, ...]
    notes: tuple[str, ...]


def plan_batch(batch: Batch, jobs: Sequence[Job]) -> Planned:
    """Check every job before the first is begun.

    Raises:
        BadInput: a request cannot be met, or a file in the folder is another clip; the message names the line or the file.
    """
    batch.out.mkdir(parents=True, exist_ok=True)
    pipeline, pending, made, notes = batch.pipeline(), [], [], []
    for job in jobs:
        resolved = job.resolved(pipeline)
        digest = job.digest(pipeline, resolved)
        check_output(batch.file(job))
        if is_made(batch.file(job), digest):
            made.append(job.name)
            continue
        pending.append((job, digest))
        notes += [f"line {job.line} ({job.name}): {note}" for note in resolved.notes]
    return Planned(tuple(pending), tuple(made), tuple(notes))


def make_batch(batch: Batch, planned: Planned, progress: Progress = SILENT) -> Iterator[Made]:
    """Make the clips that are pending, and yield each when its file is whole. One that fails does not stop the others.

    Raises:
        BadInput: the disk is full, or a process of the batch was killed.
        BundleError: a file of the bundle is damaged.
    """
    if not planned.pending:
        return
    with scratch_folder(batch.out / "clips", "embeddings") as folder:
        _encode_texts(batch, planned, folder, progress)
        with progress.stage("clips", len(planned.pending)) as advance:
            for made in _clips(batch, planned, folder):
                advance()
                yield made


def _encode_texts(batch: Batch, planned: Planned, folder: Path, progress: Progress) -> None:
    """Every prompt's embedding into ``folder``; the text encoder is given up after."""
    pipeline = batch.pipeline(folder)
    with progress.stage("text", len(planned.pending)) as advance:
        for job, _ in planned.pending:
            guided = pipeline.resolve(job.request).guidance > 1
            pipeline.encode_prompt(job.request.prompt, job.request.negative_prompt, guided)
            advance()


def _clips(batch: Batch, planned: Planned, folder: Path) -> Iterator[Made]:
    if batch.workers == 1:
        pipeline = batch.pipeline(folder)
        yield from (_make(batch, pipeline, *each) for each in planned.pending)
        return
    count = min(batch.workers, len(planned.pending))
    threads = batch.options.cpu_threads() or max(1, usable_cores() // count)
    each = replace(batch, options=replace(batch.options, threads=threads))
    with _processes(count, each, folder) as pool:
        waiting = [pool.submit(_make_here, *job) for job in planned.pending]
        try:
            for future in as_completed(waiting):
                yield future.result()
        except BrokenProcessPool as error:
            raise BadInput(
                "a process of the batch was killed, perhaps because memory was short; run the command again, which goes on where it "
                "was, with fewer --workers"
            ) from error


@contextmanager
def _processes(count: int, batch: Batch, folder: Path) -> Iterator[ProcessPoolExecutor]:
    """So many, each with a pipeline of its own; ended at once when this is left early."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, context, _open_here, (batch, folder))
    try:
        yield pool
        pool.shutdown()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise


# Of a process of the batch: what it makes clips with.
_here: tuple[Batch, Pipeline] | None = None


def _open_here(batch: Batch, folder: Path) -> None:
    global _here
    Thread(target=_end_with_parent, daemon=True).start()
    _here = (batch, batch.pipeline(folder))


def _end_with_parent() -> None:
    """A process whose parent was killed would go on alone, and write into a folder that the next run works on."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _make_here(job: Job, digest: str) -> Made:
    assert _here is not None, "a process of the batch has no pipeline"
    return _make(*_here, job, digest)


def _make(batch: Batch, pipeline: Pipeline, job: Job, digest: str) -> Made:
    began, file = time.monotonic(), batch.file(job)
    try:
        clip = pipeline.render(job.request, file, note={DIGEST: digest})
    except (AccuracyError, EngineError) as error:
        return Made(job.name, str(file), failed=str(error))
    seconds = round(time.monotonic() - began, 3)
    return Made(job.name, str(file), seconds, clip.provenance["forwards"], clip.sha256, clip.flaws)
