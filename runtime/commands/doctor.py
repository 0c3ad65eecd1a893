"""``reelquant doctor``: which engines can run here, and why others cannot."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.commands.options import JSON, print_json
from reelquant.runtime.machine.doctor import built_engines, diagnose, machine, precisions
from reelquant.runtime.machine.gpus import gpus


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@JSON
def doctor(bundle: Path | None, as_json: bool) -> None:
    """Say which engines can run on this machine, and what the others lack; of BUNDLE, whether the engines it was built for run it here."""
    reports, host, found = diagnose(), machine(), gpus()
    built = built_engines(Bundle.open(bundle)) if bundle else {}
    if as_json:
        engines = [asdict(report) for report in reports]
        worth = {engine: [asdict(note) for note in made] for engine, made in precisions(reports).items()}
        facts = {"machine": asdict(host), "gpus": asdict(found), "engines": engines, "precisions": worth}
        print_json({**facts, "bundle": built})
        return
    click.echo(f"{host.cpu}, {host.cores} cores, {host.memory / 2**30:.0f} GiB, {', '.join(host.instruction_sets)}")
    click.echo(f"GPU: {', '.join(found.names) or found.reason}")
    for report in reports:
        state = "ready" if report.usable else "no"
        click.echo(f"{report.engine:16} {state:6} {report.version or '':12} {report.devices or report.reason}")
        if report.remedy:
            click.echo(f"{'':16} {'':6} {'':12} → {report.remedy}")
    for engine, made in precisions(reports).items():
        click.echo(f"on this CPU, with {engine}:")
        for note in made:
            click.echo(f"  {note.precision:12} {note.text}")
    for engine, reason in built.items():
        click.echo(
            f"{bundle} {'runs' if reason is None else 'does not run'} here on {engine}{f': {reason}' if reason else ''}"
        )
