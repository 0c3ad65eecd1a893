"""``reelquant build``: compile a bundle's graphs for an engine."""

from __future__ import annotations

from pathlib import Path

import click

from reelquant.runtime.build import build_bundle
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.commands.options import BUNDLE, ENGINE, JSON, QUIET, THREADS, print_json, shown
from reelquant.runtime.progress import Progress


@click.command()
@BUNDLE
@ENGINE
@THREADS
@QUIET
@JSON
def build(bundle: Path, engine: str, threads: int | None, quiet: bool, as_json: bool) -> None:
    """Compile every graph of BUNDLE on an engine once, and record that it runs there."""
    with Progress(shown(quiet)) as progress:
        built = build_bundle(Bundle.open(bundle), engine, threads, progress)
    record = built.manifest.engines[engine]
    if as_json:
        print_json({"path": str(bundle), "engine": engine, **record})
    else:
        click.echo(f"{bundle}: {len(record['build_seconds'])} graphs run on {engine} {record['version']}")
