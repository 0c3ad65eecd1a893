"""Options that commands which sample clips share; each group is one value, with the defaults of its dataclass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from reelquant.quant.calibration.plan import CalibrationPlan
from reelquant.quant.evaluation.teacher import Trial
from reelquant.runtime.commands.options import count_option, option_group, size_option
from reelquant.runtime.request import MAX_STEPS
from reelquant.runtime.sizes import Size

OUT = click.argument("out", type=click.Path(path_type=Path))
REPLACE = click.option("--replace", is_flag=True, help="Replace OUT when it exists, once the new one is whole.")
GATE = click.option(
    "--gate/--no-gate",
    default=True,
    show_default=True,
    help="Refuse a transformer that lost too much (reelquant gate).",
)


def sampling_options(prefix: str = "") -> Callable[[Any], Any]:
    """What calibration samples: ``sampling: CalibrationPlan``. A command that makes other clips too gives a ``prefix``."""

    def plan(prompts: int, steps: int, seed: int, size: Size | None) -> CalibrationPlan:
        return CalibrationPlan(prompts, steps, seed, size=size)

    return option_group(
        "sampling",
        plan,
        count_option(f"--{prefix}prompts", CalibrationPlan.prompts, "Calibration clips."),
        count_option(
            f"--{prefix}steps", CalibrationPlan.steps, "Denoising steps of each calibration clip.", most=MAX_STEPS
        ),
        count_option(f"--{prefix}seed", CalibrationPlan.seed, "Seed of the first calibration clip.", least=0),
        size_option("Size of the calibration clips [default: the bundle's].", f"--{prefix}size"),
        prefix=prefix,
    )


def trial_options(prefix: str = "") -> Callable[[Any], Any]:
    """Clips that calibration did not see, on which a quantized transformer is tried: ``trial: Trial``. A command that makes other
    clips too gives a ``prefix``.
    """

    def trial(data: str, prompts: int, steps: int, seed: int) -> Trial:
        return Trial(data, prompts, steps, seed)

    return option_group(
        "trial",
        trial,
        click.option(
            "--data",
            f"{prefix.replace('-', '_')}data",
            default=Trial.data,
            show_default=True,
            help="A calibration set by name, or a folder; the last prompts of the set are tried.",
        ),
        count_option(f"--{prefix}prompts", Trial.prompts, "Clips that are tried."),
        count_option(f"--{prefix}steps", Trial.steps, "Denoising steps of each clip that is tried.", most=MAX_STEPS),
        count_option(
            f"--{prefix}seed", Trial.seed, "Seed of the clips that are tried; calibration has another.", least=0
        ),
        prefix=prefix,
    )
