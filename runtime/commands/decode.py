"""``reelquant decode``: latents that were kept become a clip."""

from __future__ import annotations

from pathlib import Path

import click

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.commands.options import (
    BUNDLE,
    ENGINE_OPTIONS,
    JSON,
    QUIET,
    TILED,
    end_with_flaws,
    print_json,
    say_engine,
    shown,
)
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.media.writers import check_output
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.progress import Progress
from reelquant.runtime.sampling.latents import SavedLatents


@click.command()
@BUNDLE
@click.argument("latents", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="FILE.mp4, .gif, .png or .npy")
@TILED
@ENGINE_OPTIONS
@QUIET
@JSON
@click.pass_context
def decode(
    context: click.Context,
    bundle: Path,
    latents: Path,
    output: Path,
    tiled: bool,
    options: EngineOptions,
    quiet: bool,
    as_json: bool,
) -> None:
    """Decode LATENTS, a file of `generate --latents`, with BUNDLE's VAE. The clip is the one that generate makes."""
    check_output(output)
    saved = SavedLatents.load(latents)
    pipeline = Pipeline(Bundle.open(bundle), options, tiled=tiled)
    say_engine(pipeline.engine_note, quiet)
    with Progress(shown(quiet)) as progress:
        clip = pipeline.render_saved(saved, output, progress)
    seconds = clip.seconds.get("decode", 0.0)
    if as_json:
        print_json(
            {
                "clip": str(output),
                "frames": clip.size.frames,
                "seconds": round(seconds, 4),
                "flaws": clip.flaws,
                "sha256_frames": clip.sha256,
            }
        )
    else:
        click.echo(f"{output}: {clip.size.frames} frames, {seconds:.1f} s")
    end_with_flaws(context, clip.flaws, output)
