"""``reelquant calibrate``: observe a bundle."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from reelquant.quant.calibration.calibrate import calibrate as run_calibration
from reelquant.quant.calibration.data import CalibrationData
from reelquant.quant.calibration.plan import CalibrationPlan
from reelquant.quant.commands.options import OUT, REPLACE, sampling_options
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.commands.options import BUNDLE, JSON, QUIET, print_json, shown
from reelquant.runtime.files.atomic import check_free
from reelquant.runtime.progress import Progress


@click.command()
@BUNDLE
@OUT
@click.option(
    "--data", default="general", show_default=True, help="A set by name, or a folder: prompts.txt and images/."
)
@sampling_options()
@click.option(
    "--engine",
    default=CalibrationPlan.engine,
    show_default=True,
    metavar="NAME",
    help="The engine that runs BUNDLE's graphs.",
)
@REPLACE
@QUIET
@JSON
def calibrate(
    bundle: Path,
    out: Path,
    data: str,
    sampling: CalibrationPlan,
    engine: str,
    replace: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run BUNDLE (fp32) over prompts and timesteps, and write the ranges of its activations to the folder OUT."""
    check_free(out, replace)
    plan = dataclasses.replace(sampling, engine=engine)
    with Progress(shown(quiet)) as progress:
        ranges = run_calibration(Bundle.open(bundle), CalibrationData.load(data), plan, progress)
    ranges.save(out, replace)
    if as_json:
        facts = {
            "tensors": len(ranges.low),
            "samples": len(ranges.samples),
            "prompts": plan.prompts,
            "steps": plan.steps,
        }
        print_json({"path": str(out), "digest": ranges.digest, **facts})
    else:
        click.echo(f"{out}: {ranges.summary}")
