"""``reelquant doctor``: which engines can run here, and why others cannot."""

from __future__ import annotations

from dataclasses import asdict

import click

from reelquant.runtime.commands.options import JSON, print_json
from reelquant.runtime.doctor import diagnose, machine
from reelquant.runtime.gpus import gpus


@click.command()
@JSON
def doctor(as_json: bool) -> None:
    """Say which engines can run on this machine, and what the others lack."""
    reports, host, found = diagnose(), machine(), gpus()
    if as_json:
        print_json({"machine": asdict(host), "gpus": asdict(found), "engines": [asdict(r) for r in reports]})
        return
    click.echo(f"{host.cpu}, {host.cores} cores, {host.memory / 2**30:.0f} GiB, {', '.join(host.instruction_sets)}")
    click.echo(f"GPU: {', '.join(found.names) or found.reason}")
    for report in reports:
        state = "ready" if report.usable else "no"
        click.echo(f"{report.engine:13} {state:6} {report.version or '':12} {report.devices or report.reason}")
        if report.remedy:
            click.echo(f"{'':13} {'':6} {'':12} → {report.remedy}")
