"""``reelquant lint``: what TensorRT would refuse, found without it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from reelquant.quant.lint.run import lint_bundle
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.commands.options import BUNDLE, CLIPS_TO_BUILD, JSON, print_json
from reelquant.runtime.engines.options import CURRENT, BuildSpec
from reelquant.runtime.engines.tensorrt.targets import TARGETS
from reelquant.runtime.errors import BadInput


@click.command()
@BUNDLE
@CLIPS_TO_BUILD
@JSON
@click.pass_context
def lint(context: click.Context, bundle: Path, spec: BuildSpec, as_json: bool) -> None:
    """Say what of BUNDLE TensorRT would refuse or leave unfused. Exit code 1 when there is more than warnings."""
    for name in spec.gpus:
        if name not in (CURRENT, *TARGETS):
            raise BadInput(f"unknown GPU {name!r}; one of {', '.join(TARGETS)}")
    found = lint_bundle(Bundle.open(bundle), spec)
    if as_json:
        print_json({name: [asdict(finding) for finding in findings] for name, findings in found.items()})
    else:
        for name, findings in found.items():
            for finding in findings:
                click.echo(f"{name}: {finding}")
        click.echo(f"{bundle}: {sum(map(len, found.values())) or 'no'} findings")
    context.exit(1 if any(not finding.warning for findings in found.values() for finding in findings) else 0)
