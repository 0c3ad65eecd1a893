"""``reelquant gate``: a quantized bundle beside its reference."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from reelquant.quant.commands.options import trial_options
from reelquant.quant.evaluation.gate import check_reference
from reelquant.quant.evaluation.gate import gate as run_gate
from reelquant.quant.evaluation.scheduled import ScheduledClip, schedule_faults, scheduled_clips
from reelquant.quant.evaluation.teacher import Trial
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.commands.options import BUNDLE, ENGINE, JSON, QUIET, print_json, shown, size_option
from reelquant.runtime.engines.registry import get_engine
from reelquant.runtime.progress import Progress
from reelquant.runtime.sampling.schedule import load_schedule
from reelquant.runtime.sizes import Size


@click.command()
@BUNDLE
@click.argument("reference", type=click.Path(path_type=Path))
@trial_options()
@size_option("Size of the clips [default: REFERENCE's].")
@click.option(
    "--schedule",
    metavar="NAME|FILE",
    help="A schedule of BUNDLE, or a file: whole clips are held against those with every step computed, and against REFERENCE's.",
)
@ENGINE
@QUIET
@JSON
@click.pass_context
def gate(
    context: click.Context,
    bundle: Path,
    reference: Path,
    trial: Trial,
    size: Size | None,
    schedule: str | None,
    engine: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Hold BUNDLE, quantized, against REFERENCE, the fp32 bundle it was made from. Exit code 1 when it lost too much."""
    judged, teacher = Bundle.open(bundle), Bundle.open(reference)
    engine = get_engine(engine).accuracy_engine
    check_reference(judged, teacher, engine)
    chosen = load_schedule(schedule, judged) if schedule else None
    trial = dataclasses.replace(trial, size=size, engine=engine)
    with Progress(shown(quiet)) as progress:
        verdict = run_gate(judged, teacher, trial.record(teacher, progress), engine, progress)
        clips: list[ScheduledClip] = []
        if chosen is not None:
            requests = trial.requests(judged.manifest.task)
            clips = scheduled_clips(judged, teacher, chosen, requests, engine, progress)
            verdict = dataclasses.replace(verdict, faults=(*verdict.faults, *schedule_faults(chosen, clips)))
    if as_json:
        print_json({**verdict.as_json(), "scheduled": [dataclasses.asdict(clip) for clip in clips]})
    else:
        for fault in verdict.faults:
            click.echo(fault)
        said = f"{len(verdict.faults)} faults" if verdict.faults else "passed"
        click.echo(
            f"{bundle}: {said}; relative L2 {verdict.worst.rel_l2:.4f}, cosine {verdict.worst.cosine:.5f} at worst "
            f"over {len(verdict.runs)} steps on {verdict.engine}"
        )
        if clips:
            click.echo(
                f"schedule {schedule}: {min(clip.psnr for clip in clips):.1f} dB at least to the same clips with every step computed"
            )
    context.exit(1 if verdict.faults else 0)
