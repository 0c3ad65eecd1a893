"""``reelquant lint``: what TensorRT would refuse, found without it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from reelquant.quant.lint.run import lint_bundle
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.commands.options import BUNDLE, DYNAMIC, JSON, TILED, clips_option, print_json
from reelquant.runtime.engines.tensorrt.builder import BuildOptions
from reelquant.runtime.engines.tensorrt.stage import Wanted
from reelquant.runtime.engines.tensorrt.targets import TARGETS
from reelquant.runtime.errors import BadInput
from reelquant.runtime.sizes import Size


@click.command()
@BUNDLE
@click.option("--gpu", default="", metavar="NAMES", help="GPUs that the engines are for, such as sm89,sm120.")
@clips_option("Clips that the engines are for [default: the bundle's].")
@DYNAMIC
@TILED
@JSON
@click.pass_context
def lint(
    context: click.Context, bundle: Path, gpu: str, clips: tuple[Size, ...], dynamic: bool, tiled: bool, as_json: bool
) -> None:
    """Say what of BUNDLE TensorRT would refuse or leave unfused. Exit code 1 when there is more than warnings."""
    names = tuple(name.strip().lower() for name in gpu.split(",") if name.strip())
    for name in names:
        if name not in TARGETS:
            raise BadInput(f"unknown GPU {name!r}; one of {', '.join(TARGETS)}")
    found = lint_bundle(Bundle.open(bundle), Wanted(clips, dynamic, tiled, BuildOptions(names)))
    if as_json:
        print_json({name: [asdict(finding) for finding in findings] for name, findings in found.items()})
    else:
        for name, findings in found.items():
            for finding in findings:
                click.echo(f"{name}: {finding}")
        click.echo(f"{bundle}: {sum(map(len, found.values())) or 'no'} findings")
    context.exit(1 if any(not finding.warning for findings in found.values() for finding in findings) else 0)
