"""CogVideoX's DDIM and DPM-Solver++ schedulers, step for step as diffusers 0.42 computes them on float32 latents.

Level arithmetic is done on numpy scalars of the table's dtype and each coefficient is rounded to float32 before it
meets the latents: torch promotes that way, whereas a numpy float64 scalar would turn the latents into float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from numbers import Integral
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.engines.sums import Adder, Sum, as_float32, computed, zeros_like
from reelquant.runtime.errors import BadInput, BundleError
from reelquant.runtime.models.cogvideox.noise import Levels, NoiseConfig, signal_levels, spaced_timesteps

Latents = NDArray[np.float32]
Level = np.floating[Any]
Noise = Callable[[tuple[int, ...]], Latents]  # a shape → standard normal noise


class Move(NamedTuple):
    """One step down from ``level`` to ``target``; ``before`` is the last step's clean latents and level, if of use."""

    latents: Latents
    original: Latents
    level: Level
    target: Level
    before: tuple[Latents, Level] | None
    noise: Noise


class Toward(NamedTuple):
    """A step to first order: ``rest`` is where it goes without clean latents, its noise in it; it keeps ``keep`` of the latents and
    adds ``gain`` of the clean ones and ``spread`` of noise.
    """

    rest: Latents
    keep: float
    gain: float
    spread: float

    def to(self, clean: Latents) -> Latents:
        """The latents after it."""
        moved: Latents = self.rest + np.float32(self.gain) * clean
        return moved


@dataclass(frozen=True)
class Scheduler(ABC):
    """What both schedulers share; holds no state of a run, so one serves any number of them.

    ``listed`` are the timesteps of every run, where they are not spaced by the config: few-step models were trained at some of
    their own. Each step then goes to the next of them by the scheduler's own formula, and the last to clean latents. diffusers' two
    schedulers take no such list.
    """

    config: NoiseConfig
    listed: tuple[int, ...] | None = None
    init_noise_sigma: ClassVar[float] = 1.0  # starting latents are noise times this
    adds_noise: ClassVar[bool]  # at every step

    @cached_property
    def levels(self) -> Levels:
        """ᾱ by training timestep; see :func:`reelquant.runtime.models.cogvideox.noise.signal_levels`."""
        return signal_levels(self.config)

    def at(self, timesteps: Iterable[int]) -> Self:
        """The same scheduler with runs at these timesteps.

        Raises:
            BadInput: they do not fall, or the model was not trained at one of them.
        """
        return replace(self, listed=check_timesteps(timesteps, self.config.num_train_timesteps))

    def timesteps(self, steps: int) -> NDArray[np.int64]:
        """Return the [steps] timesteps the model is run at: those listed, or
        :func:`reelquant.runtime.models.cogvideox.noise.spaced_timesteps`.

        Raises:
            BadInput: the model was not trained at so many timesteps.
            ValueError: another number of them is listed.
        """
        if self.listed is None:
            return spaced_timesteps(self.config, steps)
        if len(self.listed) != steps:
            raise ValueError(f"{steps} steps, and {len(self.listed)} timesteps are listed")
        return np.array(self.listed, np.int64)

    def targets(self, steps: int) -> NDArray[np.int64]:
        """Return the [steps] timesteps to which each step goes; below 0 are clean latents.

        diffusers goes down by an equal stride whatever the spacing; from a listed timestep it is on to the next.
        """
        if self.listed is None:
            return self.timesteps(steps) - self.config.num_train_timesteps // steps
        return np.array([*self.listed[1:], -1], np.int64)

    def begin(self, steps: int, rng: np.random.Generator, noise: Noise | None = None, skip: int = 0) -> Run:
        """Start a denoising run; what noise a step adds is drawn from ``noise``, or else from ``rng``.

        ``skip`` leaves out the first of the ``steps``, for latents that are not all noise to begin with.

        Raises:
            BadInput: the model was not trained at so many timesteps.
            BundleError: the model predicts noise but is started where there is nothing else.
        """
        timesteps = self.startable(steps)
        drawn = noise or (lambda shape: rng.standard_normal(shape, dtype=np.float32))
        return Run(self, timesteps[skip:], self.targets(steps)[skip:], drawn)

    def startable(self, steps: int) -> NDArray[np.int64]:
        """The timesteps of ``steps`` when a run can start at the first of them; raises what :meth:`begin` raises."""
        timesteps = self.timesteps(steps)
        if self.config.prediction_type == "epsilon" and self.levels[timesteps[0]] == 0:
            raise BundleError(
                "scheduler_config.json: prediction_type epsilon cannot start from zero SNR; "
                "set rescale_betas_zero_snr to false, or prediction_type to what the model was trained for"
            )
        return timesteps

    def draws(self, steps: int, skip: int = 0) -> list[int]:
        """How many times diffusers' scheduler draws noise at each step of a run, of which it uses the last: for who hands in
        what its generator would draw. None at any where it adds none.
        """
        if not self.adds_noise:
            return []
        # A second-order step draws for a first-order one before, and leaves that unused.
        return [2 if i and target >= 0 else 1 for i, target in enumerate(self.targets(steps)[skip:])]

    def add_noise(self, original: Latents, noise: Latents, timestep: int) -> Latents:
        """Return float32 latents as noisy as those of a training ``timestep``.

        Raises:
            ValueError: there is no such timestep.
        """
        if not 0 <= timestep < len(self.levels):
            raise ValueError(f"timestep {timestep} is not from 0 to {len(self.levels) - 1}")
        level = np.float32(self.levels[timestep])  # rounded before the roots, as diffusers does here and only here
        noisy: Latents = np.float32(level**0.5) * original + np.float32((1 - level) ** 0.5) * noise
        return noisy

    def original(self, output: Latents, latents: Latents, level: Level) -> Latents:
        """Return the clean latents that a model's float32 output stands for at ``level``."""
        signal, noise = np.float32(level**0.5), np.float32((1 - level) ** 0.5)
        if self.config.prediction_type == "epsilon":
            divided: Any = (latents - noise * output) / signal
            clean: Latents = divided
            return clean
        if self.config.prediction_type == "sample":
            return output
        return signal * latents - noise * output

    @abstractmethod
    def previous(self, move: Move) -> Latents:
        """Return the float32 latents at ``move.target``."""


class DDIM(Scheduler):
    """``CogVideoXDDIMScheduler``: deterministic; eq. 12 of https://arxiv.org/abs/2010.02502 with σ = 0."""

    adds_noise = False

    def previous(self, move: Move) -> Latents:
        level, target = move.level, move.target
        keep = ((1 - target) / (1 - level)) ** 0.5
        gain = target**0.5 - level**0.5 * keep
        return np.float32(keep) * move.latents + np.float32(gain) * move.original


class DPM(Scheduler):
    """``CogVideoXDPMScheduler``: SDE-DPM-Solver++(2M) of https://arxiv.org/abs/2211.01095, which adds noise."""

    adds_noise = True

    def previous(self, move: Move) -> Latents:
        level, target, original = move.level, move.target, move.original
        width = _log_snr(target) - _log_snr(level)
        keep = ((1 - target) / (1 - level)) ** 0.5 * np.exp(-width)
        gain = -np.expm1(-2 * width) * target**0.5
        spread = (1 - target) ** 0.5 * (1 - np.exp(-2 * width)) ** 0.5
        if move.before is not None:
            last, last_level = move.before
            ratio = (_log_snr(level) - _log_snr(last_level)) / width
            original = np.float32(1 + 1 / (2 * ratio)) * original - np.float32(1 / (2 * ratio)) * last
        moved: Latents = np.float32(keep) * move.latents + np.float32(gain) * original
        return moved + np.float32(spread) * move.noise(move.latents.shape)


class Run:
    """One clip's way from noise to latents, started by :meth:`Scheduler.begin`.

    Arrays may be sums on a device (:mod:`reelquant.runtime.engines.sums`) where :meth:`on_device` was called.
    """

    def __init__(
        self, scheduler: Scheduler, timesteps: NDArray[np.int64], targets: NDArray[np.int64], noise: Noise
    ) -> None:
        self.timesteps, self._targets = timesteps, targets
        self._scheduler, self._source = scheduler, noise
        self._drawn: dict[int, Latents] | None = None  # since the last mark
        self._done = 0
        self._before: tuple[Latents, Level] | None = None

    def on_device(self, adder: Adder, shape: tuple[int, ...]) -> None:
        """Let the noise that is still to come lie where ``adder`` computes: all of it is drawn and goes there now, in the order of the steps."""
        if self._scheduler.adds_noise:
            left = [Sum.of(adder, self._source(shape)) for _ in range(self._done, len(self.timesteps))]
            coming: Iterator[Any] = iter(left)
            self._source = lambda shape: next(coming)

    def step(self, i: int, model_output: NDArray[Any], latents: NDArray[Any]) -> Latents:
        """Return the float32 latents after step ``i``; both arrays have the latents' shape.

        Raises:
            ValueError: steps are not taken in order, or the shapes differ.
        """
        self._check(i, model_output, latents)
        output, latents = as_float32(model_output), as_float32(latents)
        level, target, last = self._levels(i)
        original = self._scheduler.original(output, latents, level)
        if self._scheduler.adds_noise:  # the next step reads it too
            original = computed(original)
        before = None if last else self._before
        self._before, self._done = (original, level), i + 1
        return self._scheduler.previous(Move(latents, original, level, target, before, partial(self._noise, i)))

    def clean(self, i: int, model_output: Latents, latents: Latents) -> Latents:
        """Return the clean latents that the model's float32 output stands for at step ``i``."""
        return self._scheduler.original(model_output, latents, self._levels(i)[0])

    def toward(self, i: int, latents: Latents) -> Toward:
        """Begin step ``i`` towards clean latents that are still to be said, to first order: whoever forecasts them takes earlier
        ones into account.

        Raises:
            ValueError: as :meth:`step`.
        """
        self._check(i, latents, latents)
        level, target, _ = self._levels(i)
        self._before, self._done = None, i + 1

        def moved(latents: Latents, clean: Latents, noise: Noise) -> Latents:
            return self._scheduler.previous(Move(latents, clean, level, target, None, noise))

        one, none = np.ones(1, np.float32), np.zeros(1, np.float32)
        keep, gain = (moved(*pair, lambda _: none) for pair in ((one, none), (none, one)))
        spread = moved(none, none, lambda _: one)
        rest = moved(latents, zeros_like(latents), partial(self._noise, i))
        return Toward(rest, float(keep[0]), float(gain[0]), float(spread[0]))

    def mark(self) -> None:
        """Remember the noise of the steps from here on, for :meth:`rewind`."""
        self._drawn = {}

    def rewind(self, i: int) -> None:
        """Take step ``i``, not before the last mark, and those after it again, to first order at first and with the same noise."""
        self._done, self._before = i, None

    def _noise(self, i: int, shape: tuple[int, ...]) -> Latents:
        if self._drawn is None:
            return self._source(shape)
        if i not in self._drawn:
            self._drawn[i] = self._source(shape)
        return self._drawn[i]

    def _check(self, i: int, given: NDArray[Any], latents: NDArray[Any]) -> None:
        if i != self._done or i >= len(self.timesteps):
            raise ValueError(f"step {i} out of order: step {self._done} of {len(self.timesteps)} is next")
        if given.shape != latents.shape:
            raise ValueError(f"model output {given.shape} and latents {latents.shape} differ in shape")

    def _levels(self, i: int) -> tuple[Level, Level, bool]:
        """The levels before and after step ``i``, and whether it is the last."""
        levels = self._scheduler.levels
        level, after = levels[self.timesteps[i]], int(self._targets[i])
        if after >= 0:
            return level, levels[after], False
        # np.float32 as diffusers: beside a float32 table a float64 one would promote the arithmetic.
        return level, np.float32(1) if self._scheduler.config.set_alpha_to_one else levels[0], True


CLASSES: dict[str, type[Scheduler]] = {"CogVideoXDDIMScheduler": DDIM, "CogVideoXDPMScheduler": DPM}
NAMES = {"ddim": "CogVideoXDDIMScheduler", "dpm": "CogVideoXDPMScheduler"}


def scheduler_from_config(config: Mapping[str, Any]) -> Scheduler:
    """Make the scheduler that a scheduler_config.json describes.

    Raises:
        BundleError: its class, or the value of a field, is not supported.
    """
    name = str(config.get("_class_name"))
    if name not in CLASSES:
        raise BundleError(
            f"scheduler_config.json: _class_name is {name!r}, not one of {', '.join(CLASSES)}; "
            "use a CogVideoX checkpoint, or correct it and export again"
        )
    return CLASSES[name](NoiseConfig.parse(config))


def with_class(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return ``config`` for the scheduler called ``name`` ("ddim" or "dpm"), its noise levels unchanged.

    Raises:
        BadInput: the name is neither.
    """
    if name not in NAMES:
        raise BadInput(f"unknown scheduler {name!r}; one of {', '.join(NAMES)}")
    return {**config, "_class_name": NAMES[name]}


def check_timesteps(timesteps: Iterable[Any], trained: int) -> tuple[int, ...]:
    """The timesteps as a tuple of Python's own integers.

    Raises:
        BadInput: there are none, one is no whole number from 0 to ``trained`` - 1, or they do not fall.
    """
    wanted = f"give whole numbers from {trained - 1} down to 0, each less than the one before, such as 999,856,665,399"
    given = list(timesteps)
    if not given:
        raise BadInput(f"there are no timesteps; {wanted}")
    for each in given:
        if not isinstance(each, Integral) or isinstance(each, bool) or not 0 <= int(each) < trained:
            raise BadInput(f"timestep {each!r:.40} is not from 0 to {trained - 1}; {wanted}")
    for before, after in pairwise(given):
        if after >= before:
            raise BadInput(f"timestep {after} comes after {before} and is not less; {wanted}")
    return tuple(map(int, given))


def _log_snr(level: Level) -> Level:
    with np.errstate(divide="ignore"):  # infinite at both ends, where there is no noise or no signal
        made: Level = np.log((level / (1 - level)) ** 0.5)
    return made
