"""``reelquant decode``: latents that were kept become a clip."""

from __future__ import annotations

from pathlib import Path

import click

from reelquant.runtime.commands.options import (
    BUILT_ENGINE,
    BUNDLE,
    JSON,
    KEYS,
    QUIET,
    THREADS,
    TILED,
    TRUST,
    end_with_flaws,
    print_json,
    say_engine,
    shown,
)
from reelquant.runtime.latents import SavedLatents
from reelquant.runtime.pipeline import load_pipeline
from reelquant.runtime.progress import Progress
from reelquant.runtime.trust import Trust
from reelquant.runtime.video import check_output


@click.command()
@BUNDLE
@click.argument("latents", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="FILE.mp4, .gif, .png or .npy")
@TILED
@BUILT_ENGINE
@THREADS
@KEYS
@TRUST
@QUIET
@JSON
@click.pass_context
def decode(
    context: click.Context,
    bundle: Path,
    latents: Path,
    output: Path,
    tiled: bool,
    engine: str | None,
    threads: int | None,
    keys: tuple[Path, ...],
    trust: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Decode LATENTS, a file of `generate --latents`, with BUNDLE's VAE. The clip is the one that generate makes."""
    check_output(output)
    saved = SavedLatents.load(latents)
    pipeline = load_pipeline(bundle, engine, threads, tiled=tiled, trust=Trust(keys, trust))
    say_engine(pipeline.engine_note, quiet)
    with Progress(shown(quiet)) as progress:
        clip = pipeline.decode_saved(saved, progress)
    clip.save(output)
    seconds = pipeline.timer.seconds.get("decode", 0.0)
    if as_json:
        print_json(
            {
                "clip": str(output),
                "frames": len(clip.frames),
                "seconds": round(seconds, 4),
                "flaws": clip.flaws,
                "sha256_frames": clip.sha256,
            }
        )
    else:
        click.echo(f"{output}: {len(clip.frames)} frames, {seconds:.1f} s")
    end_with_flaws(context, clip.flaws, output)
