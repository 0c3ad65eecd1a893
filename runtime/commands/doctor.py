"""``reelquant doctor``: which engines can run here, and why others cannot."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.commands.options import JSON, TILED, print_json, size_option
from reelquant.runtime.errors import BadInput
from reelquant.runtime.machine.cards import card_or_memory
from reelquant.runtime.machine.doctor import built_engines, diagnose, machine, precisions
from reelquant.runtime.machine.gpus import gpus
from reelquant.runtime.machine.on_card import lines, on_card
from reelquant.runtime.sizes import Size


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option(
    "--gpu", metavar="NAME|MEMORY", help='What a GPU would do with BUNDLE: "RTX 4090", 24GB, …; none need be here.'
)
@size_option("Size of the clip on that GPU [default: the bundle's].")
@TILED
@JSON
def doctor(bundle: Path | None, gpu: str | None, size: Size | None, tiled: bool, as_json: bool) -> None:
    """Say which engines can run on this machine, and what the others lack; of BUNDLE, whether the engines it was built for run it here, or what
    a clip takes on a GPU (--gpu)."""
    if gpu is not None:
        _on_card(bundle, gpu, size, tiled, as_json)
        return
    if size or tiled:
        raise BadInput("--size and --tiled are of a clip on a GPU; name that too: --gpu 24GB")
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


def _on_card(bundle: Path | None, gpu: str, size: Size | None, tiled: bool, as_json: bool) -> None:
    card, free = card_or_memory(gpu)
    if bundle is None:
        raise BadInput(
            "--gpu says what a GPU would do with a bundle, and there is none: reelquant doctor BUNDLE --gpu …"
        )
    found = on_card(Bundle.open(bundle), card, free, size, tiled)
    if as_json:
        print_json({"gpu": asdict(card) if card else None, "plans": [each.as_json() for each in found]})
        return
    for each in found:
        for line in lines(each):
            click.echo(line)
    if card:
        click.echo(f"{card.name}: {card.memory} GB, {card.bandwidth / 1e9:,.0f} GB/s, {card.target} ({card.source})")
