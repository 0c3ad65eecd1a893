"""Options that commands which sample clips share; each group is one value, with the defaults of its dataclass."""

from __future__ import annotations

from pathlib import Path

import click

from reelquant.quant.calibration.plan import CalibrationPlan
from reelquant.quant.evaluation.teacher import Trial
from reelquant.runtime.commands.options import count_option, option_group, size_option
from reelquant.runtime.request import MAX_STEPS

OUT = click.argument("out", type=click.Path(path_type=Path))
REPLACE = click.option("--replace", is_flag=True, help="Replace OUT when it exists, once the new one is whole.")


def _sampling(
    prompts: int, steps: int, seed: int, calibration_size: tuple[int, int] | None, calibration_frames: int | None
) -> CalibrationPlan:
    return CalibrationPlan(prompts, steps, seed, size=calibration_size, frames=calibration_frames)


# What calibration samples: ``sampling: CalibrationPlan``.
SAMPLING = option_group(
    "sampling",
    _sampling,
    count_option("--prompts", CalibrationPlan.prompts, "Calibration clips."),
    count_option("--steps", CalibrationPlan.steps, "Denoising steps of each calibration clip.", most=MAX_STEPS),
    count_option("--seed", CalibrationPlan.seed, "Calibration seed.", least=0),
    size_option("Size of the calibration clips [default: the bundle's].", "--calibration-size"),
    click.option("--calibration-frames", type=int, help="Frames of each calibration clip [default: the bundle's]."),
)


def _trial(data: str, prompts: int, steps: int, seed: int) -> Trial:
    return Trial(data, prompts, steps, seed)


# Clips that calibration did not see, on which a quantized transformer is tried: ``trial: Trial``.
TRIAL = option_group(
    "trial",
    _trial,
    click.option(
        "--data",
        default=Trial.data,
        show_default=True,
        help="A calibration set by name, or a folder; the last prompts of the set are tried.",
    ),
    count_option("--prompts", Trial.prompts, "Clips that are tried."),
    count_option("--steps", Trial.steps, "Denoising steps of each clip that is tried.", most=MAX_STEPS),
    count_option("--seed", Trial.seed, "Seed of the clips that are tried; calibration has another.", least=0),
)
GATE = click.option(
    "--gate/--no-gate",
    default=True,
    show_default=True,
    help="Refuse a transformer that lost too much (reelquant gate).",
)
