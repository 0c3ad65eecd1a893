"""``reelquant batch``: many clips."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import click

from reelquant.runtime.batch.jobs import read_jobs
from reelquant.runtime.batch.run import Batch, Made, make_batch, plan_batch
from reelquant.runtime.commands.options import (
    BUNDLE,
    ENGINE_OPTIONS,
    JSON,
    QUIET,
    TILED,
    count_option,
    print_json,
    shown,
)
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.progress import Progress

FORMS = ["mp4", "gif", "png"]  # those that say how a clip was made


@click.command()
@BUNDLE
@click.argument("prompts", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--form", type=click.Choice(FORMS), default=FORMS[0], show_default=True, help="What clips are saved as.")
@count_option("--workers", 1, "Processes that make clips side by side, each with the networks in memory.")
@count_option("--seed", 0, "What is added to the number of a line without a seed.", least=0)
@TILED
@ENGINE_OPTIONS
@QUIET
@JSON
@click.pass_context
def batch(
    context: click.Context,
    bundle: Path,
    prompts: Path,
    out: Path,
    form: str,
    workers: int,
    seed: int,
    tiled: bool,
    options: EngineOptions,
    quiet: bool,
    as_json: bool,
) -> None:
    """Make the clips that PROMPTS asks for, a file with a JSON object on each line, into the folder OUT.

    A line such as {"prompt": "a red tram climbs a street", "name": "tram", "seed": 7} may also have negative_prompt, image, video,
    strength, steps, timesteps, guidance, scheduler, schedule and size. Every line is checked before the first clip is begun. Run again, the
    command makes the clips that are missing. Exit code 1 when a clip failed, or shows nothing.
    """
    began = time.monotonic()
    asked = Batch(bundle, out, f".{form}", options, tiled, workers)
    planned = plan_batch(asked, read_jobs(prompts, seed, asked.suffix))
    for note in planned.notes if not quiet else ():
        click.echo(note, err=True)
    made: list[Made] = []
    with Progress(shown(quiet)) as progress:
        for clip in make_batch(asked, planned, progress):
            made.append(clip)
            if clip.failed:
                click.echo(f"{clip.file} was not made: {clip.failed}", err=True)
            for flaw in clip.flaws:
                click.echo(f"{clip.file} is {flaw}: generation probably failed; try another seed", err=True)
    bad = [clip for clip in made if clip.failed or clip.flaws]
    seconds = round(time.monotonic() - began, 3)
    if as_json:
        print_json(
            {
                "out": str(out),
                "made_before": list(planned.made),
                "clips": [asdict(clip) for clip in made],
                "seconds": seconds,
            }
        )
    else:
        count = len(made) - sum(clip.failed is not None for clip in made)
        click.echo(f"{out}: {count} clips made in {seconds:.1f} s, {len(planned.made)} were there, {len(bad)} failed")
    context.exit(1 if bad else 0)
