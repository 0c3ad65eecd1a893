"""``reelquant schedule``: fewer forwards."""

from __future__ import annotations

from pathlib import Path

import click

from reelquant.quant.commands.options import OUT, REPLACE
from reelquant.quant.schedule.make import Limit, SchedulePlan, make_schedule
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.commands.options import BUNDLE, JSON, QUIET, count_option, option_group, print_json, shown
from reelquant.runtime.engines.registry import get_engine
from reelquant.runtime.progress import Progress
from reelquant.runtime.request import MAX_STEPS


def _plan(
    data: str,
    prompts: int,
    held_out: int,
    steps: int | None,
    guidance: float | None,
    scheduler: str | None,
    seed: int,
    engine: str | None,
) -> SchedulePlan:
    chosen = get_engine(engine).name if engine else None
    return SchedulePlan(data, prompts, held_out, steps, guidance, scheduler, seed, engine=chosen)


_PLAN = option_group(
    "plan",
    _plan,
    click.option(
        "--data", default=SchedulePlan.data, show_default=True, help="A calibration set by name, or a folder."
    ),
    count_option("--prompts", SchedulePlan.prompts, "Clips on which the forecasts are fitted."),
    count_option("--held-out", SchedulePlan.held_out, "Clips, of the last prompts, on which a schedule is tried."),
    click.option(
        "--steps", type=click.IntRange(2, MAX_STEPS), help="Steps of the clips it is for [default: the bundle's]."
    ),
    click.option("--guidance", type=float, help="Guidance scale of the clips it is for [default: the bundle's]."),
    click.option(
        "--scheduler",
        type=click.Choice(["ddim", "dpm"], case_sensitive=False),
        help="Sampler of the clips it is for [default: the checkpoint's].",
    ),
    count_option("--seed", SchedulePlan.seed, "Seed of the first clip.", least=0),
    click.option("--engine", metavar="NAME", help="The engine that renders the clips [default: the bundle's]."),
)


@click.command()
@BUNDLE
@OUT
@click.option(
    "--budget", required=True, metavar="LIMIT", help="What it must keep: psnr>=37, rel_l2<=0.02, forwards<=0.4."
)
@click.option("--name", default="balanced", show_default=True, help="What generate --schedule calls it.")
@_PLAN
@REPLACE
@QUIET
@JSON
def schedule(
    bundle: Path,
    out: Path,
    budget: str,
    name: str,
    plan: SchedulePlan,
    replace: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Find the steps of a clip that the transformer must compute and those that can be forecast, and write OUT: BUNDLE with that
    schedule, for generate --schedule NAME.

    The budget is of clips of the last prompts, held against the same clips with every step computed.
    """
    limit = Limit.parse(budget)
    with Progress(shown(quiet)) as progress:
        made = make_schedule(Bundle.open(bundle), out, name, limit, plan, replace, progress)
    if as_json:
        print_json({"path": str(out), "name": name, "kinds": made.kinds, "budget": str(limit), **made.measured})
        return
    seen = made.measured
    click.echo(
        f"{out}: schedule {name} takes {seen['forwards']:.0%} of the forwards; {seen['psnr']:.1f} dB from every step computed, "
        f"{seen['psnr_p5']:.1f} dB at the 5th percentile of {seen['clips']} clips"
    )
