"""``reelquant schedule``: fewer forwards."""

from __future__ import annotations

from pathlib import Path

import click

from reelquant.quant.commands.options import OUT, REPLACE
from reelquant.quant.schedule.budget import Budget
from reelquant.quant.schedule.make import SchedulePlan, make_schedule
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
    scorer: str | None,
    guard: float,
) -> SchedulePlan:
    chosen = get_engine(engine).name if engine else None
    return SchedulePlan(
        data, prompts, held_out, steps, guidance, scheduler, seed, guard=guard, engine=chosen, scorer=scorer
    )


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
    click.option(
        "--scorer",
        metavar="MODULE:FUNCTION",
        help="What says how much of a prompt a clip shows, for fidelity: a Python function (prompt, frames) → 0 to 1.",
    ),
    click.option(
        "--guard",
        type=click.FloatRange(0, min_open=True),
        default=SchedulePlan.guard,
        show_default=True,
        help="How many times as much as on the clips of the fit a forecast may miss; beyond, the rest of a clip is computed.",
    ),
)


@click.command()
@BUNDLE
@OUT
@click.option(
    "--budget",
    required=True,
    metavar="LIMITS",
    help="What it must keep: psnr>=37 or psnr_p5>=35 (dB), rel_l2<=0.02 (final latents), forwards<=0.4 (of all), "
    "fidelity>=-0.01 (with --scorer); several are joined by a comma.",
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
    limits = Budget.parse(budget)
    with Progress(shown(quiet)) as progress:
        made = make_schedule(Bundle.open(bundle), out, name, limits, plan, replace, progress)
    if as_json:
        print_json({"path": str(out), "name": name, "kinds": made.kinds, "budget": str(limits), **made.measured})
        return
    seen = made.measured
    click.echo(
        f"{out}: schedule {name} takes {seen['forwards']:.0%} of the forwards; {seen['psnr']:.1f} dB to the clips with every step "
        f"computed, {seen['psnr_p5']:.1f} dB at the 5th percentile of {seen['clips']} clips"
        + (f" (another engine alone: {seen['floor_psnr']:.1f} dB)" if seen["floor_psnr"] else "")
    )
