"""``reelquant generate``: one clip."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path

import click

from reelquant.runtime.commands.options import (
    BUNDLE,
    ENGINE,
    JSON,
    KEYS,
    QUIET,
    THREADS,
    TILED,
    TRUST,
    end_with_flaws,
    print_json,
    shown,
    size_option,
)
from reelquant.runtime.graphs import device_seconds
from reelquant.runtime.latents import SUFFIX
from reelquant.runtime.pipeline import load_pipeline
from reelquant.runtime.precision_notes import note_of
from reelquant.runtime.progress import Progress
from reelquant.runtime.request import Request
from reelquant.runtime.trust import Trust
from reelquant.runtime.video import check_output

STAGES = ("load", "text", "encode", "denoise", "decode", "write")


@click.command()
@BUNDLE
@click.argument("prompt")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="FILE.mp4, .gif, .png or .npy")
@click.option("--image", type=click.Path(path_type=Path), help="First frame, for image-to-video.")
@click.option("--video", type=click.Path(path_type=Path), help="A clip to start from (.mp4 or .npy).")
@click.option(
    "--strength", type=float, default=0.8, show_default=True, help="How much of --video is made anew, 0 to 1."
)
@click.option("--negative-prompt", default="", help="What to steer away from.")
@click.option("--seed", type=int, help="Same seed, bundle and engine: same frames [default: a new one each time].")
@click.option("--steps", type=int, help="Denoising steps [default: the bundle's].")
@click.option(
    "--guidance", type=float, help="Guidance scale; 1 turns it off and halves the work [default: the bundle's]."
)
@click.option("--frames", type=int, help="Frames [default: the bundle's].")
@size_option("Size of the clip [default: the bundle's].")
@click.option("--scheduler", type=click.Choice(["ddim", "dpm"]), help="Sampler [default: the checkpoint's].")
@click.option("--latents", type=click.Path(path_type=Path), help="Also keep the latents, FILE.npz, for decode.")
@click.option("--embeddings", type=click.Path(path_type=Path), help="Folder of prompts' embeddings, used and filled.")
@TILED
@ENGINE
@THREADS
@KEYS
@TRUST
@QUIET
@JSON
@click.pass_context
def generate(
    context: click.Context,
    bundle: Path,
    prompt: str,
    output: Path,
    image: Path | None,
    video: Path | None,
    strength: float,
    negative_prompt: str,
    seed: int | None,
    steps: int | None,
    guidance: float | None,
    frames: int | None,
    size: tuple[int, int] | None,
    scheduler: str | None,
    latents: Path | None,
    embeddings: Path | None,
    tiled: bool,
    engine: str,
    threads: int | None,
    keys: tuple[Path, ...],
    trust: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Render a clip of PROMPT from BUNDLE."""
    began = time.monotonic()
    check_output(output)
    if latents:
        check_output(latents, (SUFFIX,))
    height, width = size or (None, None)
    pipeline = load_pipeline(bundle, engine, threads, embeddings, tiled, keep=False, trust=Trust(keys, trust))
    note = note_of(pipeline.bundle.manifest, engine)
    if note and note.disappoints and sys.stderr.isatty() and not (quiet or as_json):
        click.echo(f"{note.precision} on this CPU, with {engine}: {note.text}", err=True)
    request = Request(
        prompt, image, negative_prompt, seed, steps, guidance, frames, height, width, scheduler,
        video=video, strength=strength,
    )  # fmt: skip
    with Progress(shown(quiet)) as progress:
        clip = pipeline.generate(request, progress, latents)
    with pipeline.timer("write"):
        clip.save(output)
    seconds = {stage: round(pipeline.timer.seconds.get(stage, 0.0), 4) for stage in STAGES}
    seconds["total"] = round(time.monotonic() - began, 4)
    if as_json:
        count, rows, columns, _ = clip.frames.shape
        print_json(
            {
                "clip": str(output),
                "frames": count,
                "fps": clip.fps,
                "width": columns,
                "height": rows,
                "steps": clip.provenance["steps"],
                "seed": clip.provenance["seed"],
                "engine": engine,
                "precision": pipeline.bundle.manifest.precision,
                "precision_here": asdict(note) if note else None,
                "seconds": seconds,
                "device_seconds": device_seconds(engine),
                "peak_rss_bytes": peak_rss_bytes(),
                "flaws": clip.flaws,
                "sha256_frames": clip.sha256,
            }
        )
    else:
        click.echo(f"{output}: {len(clip.frames)} frames, seed {clip.provenance['seed']}, {seconds['total']:.1f} s")
    end_with_flaws(context, clip.flaws, output)


def peak_rss_bytes() -> int:
    """The most memory this process has held; getrusage gives KiB, on macOS bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
