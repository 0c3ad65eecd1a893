"""A schedule: at which steps of a run the transformer computes, and what stands in for its answer at the others.

At a step that computes nothing, the clean latents are forecast from those of earlier steps and from the latents at hand, by
coefficients that ``reelquant schedule`` fitted on clips of the bundle. Each computed step shows how wrong the forecast of it would
have been; where that is more than its bound, the rest of the clip is computed whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.bundle import SCHEDULES, Bundle
from reelquant.runtime.engines.sums import Sum, computed, zeros_like
from reelquant.runtime.errors import BadInput, BundleError
from reelquant.runtime.sizes import Size

if TYPE_CHECKING:
    from reelquant.runtime.request import ResolvedRequest

Floats = NDArray[np.float32]
# What a step computes: both halves of guidance, one of them, or nothing.
BOTH, CONDITIONAL, UNCONDITIONAL, NOTHING = "b", "c", "u", "-"
KINDS = BOTH + CONDITIONAL + UNCONDITIONAL + NOTHING
VERSION = 1
EXACT = "exact"  # every step computed
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Schedule:
    """``kinds`` has a letter for each step: "b", "c", "u" or "-"; the first is "b".

    ``coefficients`` of a step are of what the clean latents are put together from: those of the last ``order`` conditional
    predictions, newest first, then of as many unconditional ones, then the latents themselves.
    ``checks`` of a computed step are such coefficients of what came before it, and ``bounds`` the most that this forecast may miss
    by, relative L2; both are empty where nothing can be forecast.

    It holds for one ``transformer`` (digest), ``scheduler`` (config), number of ``steps``, ``size`` and ``guidance``, from
    least to most. ``measured`` is what ``reelquant schedule`` saw on held-out clips.
    """

    name: str
    kinds: str
    order: int
    coefficients: tuple[tuple[float, ...], ...]
    checks: tuple[tuple[float, ...], ...]
    bounds: tuple[float, ...]
    transformer: str
    scheduler: Mapping[str, Any]
    size: str
    guidance: tuple[float, float]
    measured: Mapping[str, Any] = field(default_factory=dict)
    version: int = VERSION

    @property
    def steps(self) -> int:
        return len(self.kinds)

    @property
    def timesteps(self) -> tuple[int, ...] | None:
        """Those of the runs that it is for, where the scheduler does not space them."""
        listed = self.scheduler.get("timesteps")
        return None if listed is None else tuple(listed)

    @property
    def forwards(self) -> int:
        """Rows of steps that are computed: two of a guided one."""
        return sum(map(rows_of, self.kinds))

    def mismatch(self, resolved: ResolvedRequest, bundle: Bundle) -> str | None:
        """Why it does not hold for this clip of ``bundle``, or None."""
        if self.transformer != bundle.component_digest("transformer"):
            return "it was made for another transformer"
        if resolved.video is not None:
            return "it is for clips that start from noise"
        if resolved.scheduler.listed != self.timesteps:
            return f"it was made for {_called(self.timesteps)}, and the clip has {_called(resolved.scheduler.listed)}"
        if resolved.steps != self.steps:
            return f"it was made for {self.steps} steps, and the clip has {resolved.steps}"
        if str(resolved.size) != self.size:
            return f"it was made for {self.size}, and the clip is {resolved.size}"
        least, most = self.guidance
        if not least <= resolved.guidance <= most:
            return f"it was made for a guidance of {least:g} to {most:g}, and the clip has {resolved.guidance:g}"
        if dict(self.scheduler) != scheduler_facts(resolved):
            return "it was made for another scheduler"
        return None

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def parse(cls, text: str, where: Path | str) -> Schedule:
        """Read what :meth:`to_json` wrote.

        Raises:
            BundleError: it is none, or of another version, or its parts do not fit each other.
        """
        try:
            raw = json.loads(text)
            if raw.get("version") != VERSION:
                raise BundleError(
                    f"schedule {where} has version {raw.get('version')!r}, and this reelquant reads {VERSION}; make it again"
                )
            made = cls(
                **{
                    **raw,
                    "coefficients": _rows(raw["coefficients"]),
                    "checks": _rows(raw["checks"]),
                    "bounds": tuple(map(float, raw["bounds"])),
                    "guidance": tuple(map(float, raw["guidance"])),
                }
            )
            made._check()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, BadInput) as error:
            raise BundleError(f"schedule {where} is damaged ({error}); make it again: reelquant schedule") from error
        return made

    def _check(self) -> None:
        """Raises:
        ValueError: a part does not fit the others.
        """
        steps, numbers = self.steps, [*self.bounds, *self.guidance]
        check_name(self.name)
        if not self.kinds.startswith(BOTH) or set(self.kinds) - set(KINDS):
            raise ValueError(f"the kinds {self.kinds!r:.80} are not letters b, c, u and -, the first a b")
        if not 1 <= self.order <= 8 or not len(self.coefficients) == len(self.checks) == len(self.bounds) == steps:
            raise ValueError("its tables are not of one entry a step")
        if len(self.guidance) != 2:
            raise ValueError("guidance is not a least and a most")
        Size.parse(self.size)
        for i in range(steps):
            before, upto = (sources(self.kinds, end, self.order) for end in (i, i + 1))
            if len(self.coefficients[i]) != upto or len(self.checks[i]) not in (0, before):
                raise ValueError(f"step {i} has {len(self.coefficients[i])} coefficients, and {upto} are due")
            numbers += [*self.coefficients[i], *self.checks[i]]
        if not np.isfinite(numbers).all() or min(self.bounds) < 0:
            raise ValueError("a number is infinite, not a number, or a bound below 0")


def rows_of(kind: str) -> int:
    """How many rows of the transformer's batch a step of this kind takes."""
    return {BOTH: 2, NOTHING: 0}.get(kind, 1)


def sources(kinds: str, end: int, order: int) -> int:
    """How many arrays a forecast is put together from after the steps before ``end``."""
    seen = kinds[:end]
    conditional, unconditional = (seen.count(BOTH) + seen.count(half) for half in (CONDITIONAL, UNCONDITIONAL))
    return min(order, conditional) + min(order, unconditional) + 1


def check_name(name: Any) -> None:
    """Raises:
    BadInput: no schedule can have this name.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == EXACT:
        raise BadInput(
            f"{name!r} cannot name a schedule; take small letters, digits, - and _, but not {EXACT!r}, every step computed"
        )


def load_schedule(wanted: str | os.PathLike[str], bundle: Bundle) -> Schedule:
    """The schedule called ``wanted`` of a bundle, or that of a file (.json).

    Raises:
        BadInput: there is none such.
        BundleError: it is damaged, or was changed since it was made.
    """
    path = Path(wanted)
    if path.suffix == ".json":
        try:
            return Schedule.parse(path.read_text(encoding="utf-8"), path)
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(
                f"cannot read the schedule {path} ({error}); give a file that reelquant schedule wrote"
            ) from error
    names = schedules_of(bundle)
    if str(wanted) not in names:
        known = ", ".join([EXACT, *names])
        raise BadInput(
            f"{bundle.path} has no schedule {str(wanted)!r}; one of {known}, a file (.json), or make one: reelquant schedule"
        )
    file = f"{SCHEDULES}/{wanted}.json"
    bundle.check_hashes(lambda name: name == file)
    return Schedule.parse((bundle.path / file).read_text(encoding="utf-8"), bundle.path / file)


def schedules_of(bundle: Bundle) -> list[str]:
    """The names of a bundle's schedules."""
    files = (Path(name) for name in sorted(bundle.manifest.files))
    return [file.stem for file in files if file.parent == Path(SCHEDULES) and file.suffix == ".json"]


def scheduler_facts(resolved: ResolvedRequest) -> dict[str, Any]:
    """The scheduler of a clip as a schedule is tied to it."""
    facts = asdict(resolved.scheduler.config)
    betas, listed = facts.pop("trained_betas"), resolved.scheduler.listed
    return {
        "class": type(resolved.scheduler).__name__,
        "trained_betas": None if betas is None else list(betas),
        **facts,
        **({"timesteps": list(listed)} if listed is not None else {}),
    }


class Forecaster:
    """What of one clip a schedule's forecasts are put together from."""

    def __init__(self, order: int) -> None:
        self._order = order
        self._conditional: list[Floats] = []
        self._unconditional: list[Floats] = []

    def see(self, conditional: Floats | None = None, unconditional: Floats | None = None) -> None:
        """A computed step's clean latents, by the halves of guidance that were computed."""
        if conditional is not None:
            self._conditional = [conditional, *self._conditional][: self._order]
        if unconditional is not None:
            self._unconditional = [unconditional, *self._unconditional][: self._order]

    def arrays(self, latents: Floats) -> list[Floats]:
        return [*self._conditional, *self._unconditional, latents]

    def held(self, guidance: float) -> list[float]:
        """The coefficients of simply guiding by the newest of both."""
        row = [0.0] * (len(self._conditional) + len(self._unconditional) + 1)
        if self._conditional and self._unconditional:
            row[0], row[len(self._conditional)] = guidance, 1.0 - guidance
        return row

    def clean(self, coefficients: Sequence[float], latents: Floats) -> Floats:
        """The clean latents that they come to."""
        return weighted(coefficients, self.arrays(latents))


def weighted(coefficients: Sequence[float], arrays: Sequence[Floats]) -> Floats:
    """The sum of the arrays, each times its coefficient, in float32."""
    if isinstance(arrays[0], Sum):
        return computed(sum((c * each for c, each in zip(coefficients, arrays, strict=True)), zeros_like(arrays[0])))
    made = np.zeros_like(arrays[0])
    for coefficient, array in zip(coefficients, arrays, strict=True):
        made += np.float32(coefficient) * array
    return made


def _called(timesteps: tuple[int, ...] | None) -> str:
    return "evenly spaced steps" if timesteps is None else f"the timesteps {', '.join(map(str, timesteps))}"


def _rows(raw: Any) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(float, row)) for row in raw)
