"""``reelquant rotate``: a Hadamard rotation, before calibration."""

from __future__ import annotations

from pathlib import Path

import click

from reelquant.quant.commands.options import OUT, REPLACE
from reelquant.quant.rotate_bundle import rotate_bundle
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.commands.options import BUNDLE


@click.command()
@BUNDLE
@OUT
@REPLACE
def rotate(bundle: Path, out: Path, replace: bool) -> None:
    """Fold a Hadamard rotation into to_v and to_out of BUNDLE (fp32); the output is unchanged. Calibrate OUT afterwards."""
    made = rotate_bundle(Bundle.open(bundle), out, replace)
    count = made.manifest.components["transformer"].passes["main"]["rotate"]["attentions"]
    click.echo(f"{out}: {count} attentions rotated; calibrate and quantize it as any fp32 bundle")
