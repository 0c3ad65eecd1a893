"""``reelquant tune``: the fastest way to run a bundle here."""

from __future__ import annotations

from pathlib import Path

import click

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.commands.options import JSON, QUIET, print_json, shown, size_option
from reelquant.runtime.models import model_of
from reelquant.runtime.progress import Progress
from reelquant.runtime.sizes import Size
from reelquant.runtime.tune.measure import Measured, candidates, measure
from reelquant.runtime.tune.record import remember


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@size_option("Size of the clips [default: each bundle's].")
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    default=60.0,
    show_default=True,
    help="About how long to measure each bundle.",
)
@QUIET
@JSON
def tune(bundles: tuple[Path, ...], size: Size | None, seconds: float, quiet: bool, as_json: bool) -> None:
    """Measure every engine that can run BUNDLES on this machine, and remember the fastest: commands take it from then on.

    Several BUNDLES are precisions of one checkpoint: each is tuned, and the last line says with which a clip takes the least time.
    """
    opened = [Bundle.open(path) for path in bundles]
    sizes = [model_of(each.manifest).checked(size or each.manifest.defaults.size) for each in opened]
    tried = [candidates(each) for each in opened]  # refused before any is measured
    rows: list[tuple[Bundle, Size, list[Measured]]] = []
    with Progress(shown(quiet)) as progress:
        for bundle, each, ways in zip(opened, sizes, tried, strict=True):
            found = measure(bundle, each, ways, seconds, progress)
            remember(bundle, found[0].tuned(each))
            rows.append((bundle, each, found))
    best, _, ways_of_best = min(rows, key=lambda row: row[2][0].clip_seconds)
    if as_json:
        print_json(
            {
                "fastest": str(best.path),
                "bundles": [
                    {"bundle": str(bundle.path), "precision": bundle.manifest.precision, "size": str(each),
                     "steps": bundle.manifest.defaults.steps, "measured": [way.as_json() for way in found]}
                    for bundle, each, found in rows
                ],
            }
        )  # fmt: skip
        return
    for bundle, each, found in rows:
        click.echo(f"{bundle.path} ({bundle.manifest.precision}), {each}, {bundle.manifest.defaults.steps} steps")
        for number, way in enumerate(found):
            click.echo(_line(way, "remembered" if number == 0 else ""))
    if len(rows) > 1:
        click.echo(f"fastest here: {best.path} on {ways_of_best[0].candidate.engine}")


def _line(way: Measured, mark: str) -> str:
    each = way.candidate
    name = f"  {each.engine:14} batch of {each.batch}{f', {each.threads} threads' if each.threads else ''}"
    if way.failed:
        return f"{name}: not measured: {way.failed}"
    taken = f"step {way.step_seconds:.4g} s, decoding {way.decode_seconds:.4g} s, clip {way.clip_seconds:.4g} s"
    return f"{name}: {taken}{f'  ← {mark}' if mark else ''}"
