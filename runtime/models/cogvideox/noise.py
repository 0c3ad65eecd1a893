"""A scheduler_config.json's fields, checked; the signal level of each timestep, and which timesteps a run visits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.errors import BadInput, BundleError

Levels = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """The fields diffusers' CogVideoX schedulers act on, with diffusers 0.42's defaults.

    ``clip_sample``, ``clip_sample_range`` and ``sample_max_value`` are not among them: those schedulers accept them
    and never clip, so every value of theirs is ignored here too, as are fields diffusers does not know.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    trained_betas: tuple[float, ...] | None = None
    set_alpha_to_one: bool = True
    steps_offset: int = 0
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    rescale_betas_zero_snr: bool = False
    snr_shift_scale: float = 3.0

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> NoiseConfig:
        """Read a scheduler_config.json; an absent field takes its default.

        Raises:
            BundleError: a field has a value no CogVideoX scheduler supports.
        """
        values = {field.name: config[field.name] for field in fields(cls) if field.name in config}
        for name, value in values.items():
            allowed, holds = _RULES[name]
            if not holds(value):
                raise _refusal(name, value, allowed)
        if values.get("trained_betas") is not None:
            values["trained_betas"] = tuple(values["trained_betas"])
        made = cls(**values)
        if made.trained_betas is not None and len(made.trained_betas) != made.num_train_timesteps:
            wanted = f"{made.num_train_timesteps} values, one for each of num_train_timesteps"
            raise _refusal("trained_betas", f"{len(made.trained_betas)} values", wanted)
        return made


def signal_levels(config: NoiseConfig) -> Levels:
    """Return ᾱ, the share of signal in the variance at each timestep: [num_train_timesteps], falling.

    float64 for ``scaled_linear`` and float32 for the rest: diffusers holds them so, and rounds its steps accordingly.
    """
    alphas = 1 - _betas(config)
    # torch.cumprod multiplies in float64 whatever the dtype, numpy's would multiply in float32.
    levels: Levels = np.cumprod(alphas, dtype=np.float64).astype(alphas.dtype)
    shift = config.snr_shift_scale
    levels = levels / (shift + (1 - shift) * levels)
    if config.rescale_betas_zero_snr:
        levels = _zero_terminal_snr(levels)
    return levels


def spaced_timesteps(config: NoiseConfig, steps: int) -> NDArray[np.int64]:
    """Return the [steps] training timesteps that a run takes the model to, falling.

    The spacings are those of table 2 of https://arxiv.org/abs/2305.08891.

    Raises:
        BadInput: the model was not trained at so many timesteps.
    """
    trained = config.num_train_timesteps
    if not 1 <= steps <= trained:
        raise BadInput(f"{steps} steps is not a number from 1 to {trained}; 50 is usual")
    if config.timestep_spacing == "linspace":
        return np.linspace(0, trained - 1, steps).round()[::-1].astype(np.int64)
    if config.timestep_spacing == "trailing":
        # For 62 of the counts up to 1000 (61, 103, ...) the arange has one element too many, a rounded 0: diffusers
        # then runs the model once more, at timestep -1, which spoils the clip.
        return np.arange(trained, 0, -trained / steps)[:steps].round().astype(np.int64) - 1
    made = np.arange(steps, dtype=np.int64)[::-1] * (trained // steps) + config.steps_offset
    if made[0] >= trained:
        offset = f"steps_offset {config.steps_offset}"
        raise BadInput(f"{steps} steps and {offset} go past the last timestep, {trained - 1}; use fewer steps")
    return made


def _betas(config: NoiseConfig) -> Levels:
    start, end, count = config.beta_start, config.beta_end, config.num_train_timesteps
    if config.trained_betas is not None:
        return np.array(config.trained_betas, np.float32)
    if config.beta_schedule == "linear":
        return np.linspace(start, end, count, dtype=np.float32)
    if config.beta_schedule == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, count) ** 2
    return np.array(
        [min(1 - _cosine_level((i + 1) / count) / _cosine_level(i / count), 0.999) for i in range(count)], np.float32
    )


def _cosine_level(time: float) -> float:
    """ᾱ at ``time`` in 0…1, eq. 17 of https://arxiv.org/abs/2102.09672."""
    return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2


def _zero_terminal_snr(levels: Levels) -> Levels:
    """Shift and scale √ᾱ to end at 0 and still start where it did, algorithm 1 of https://arxiv.org/abs/2305.08891."""
    root = np.sqrt(levels)
    rescaled: Levels = np.square((root - root[-1]) * (root[0] / (root[0] - root[-1])))
    return rescaled


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(least: int) -> tuple[str, Callable[[Any], bool]]:
    return f"a whole number of at least {least}", lambda value: type(value) is int and value >= least


def _one_of(*names: str) -> tuple[str, Callable[[Any], bool]]:
    return f"one of {', '.join(names)}", lambda value: value in names


def _refusal(name: str, value: object, allowed: str) -> BundleError:
    return BundleError(f"scheduler_config.json: {name} is {value!r}, not {allowed}; correct it and export again")


_FRACTION = ("a number between 0 and 1", lambda value: _number(value) and 0 < value < 1)
_SWITCH = ("true or false", lambda value: isinstance(value, bool))
_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "num_train_timesteps": _whole(2),
    "beta_start": _FRACTION,
    "beta_end": _FRACTION,
    "beta_schedule": _one_of("linear", "scaled_linear", "squaredcos_cap_v2"),
    "trained_betas": (
        "null or a list of numbers between 0 and 1",
        lambda value: (
            value is None or (isinstance(value, list | tuple) and all(_number(b) and 0 < b < 1 for b in value))
        ),
    ),
    "set_alpha_to_one": _SWITCH,
    "steps_offset": _whole(0),
    "prediction_type": _one_of("epsilon", "sample", "v_prediction"),
    "timestep_spacing": _one_of("linspace", "leading", "trailing"),
    "rescale_betas_zero_snr": _SWITCH,
    "snr_shift_scale": ("a positive number", lambda value: _number(value) and value > 0),
}
