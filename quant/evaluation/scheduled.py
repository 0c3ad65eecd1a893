"""A quantized bundle with its schedule: whole clips, since forecasts and rounding could each be good and not so together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from reelquant.quant.evaluation.gate import Fault
from reelquant.quant.evaluation.pictures import psnr
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.errors import BadInput
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.progress import SILENT, Progress
from reelquant.runtime.relative_l2 import relative_l2
from reelquant.runtime.request import Request
from reelquant.runtime.sampling.schedule import Schedule
from reelquant.runtime.sizes import Size

Floats = NDArray[np.float32]
# How far below the promised 5th percentile a clip may lie: one clip in twenty does.
SLACK = 3.0
# By how much more than the root of the sum of squares the two errors together may be.
TOGETHER = 1.5


@dataclass(frozen=True)
class ScheduledClip:
    """One clip: ``psnr`` in dB of the bundle's clip by the schedule to the same with every step computed. The others are relative
    L2 of final latents: ``quantized``, every step computed, to the reference; ``scheduled`` to the bundle's own with every step computed;
    ``together``, quantized and scheduled, to the reference.
    """

    psnr: float
    quantized: float
    scheduled: float
    together: float


def scheduled_clips(
    bundle: Bundle,
    reference: Bundle,
    schedule: Schedule,
    requests: Sequence[Request],
    engine: str,
    progress: Progress = SILENT,
) -> list[ScheduledClip]:
    """The clips of ``requests`` as the schedule's own: with the steps, guidance, scheduler and size that it is for.

    Raises:
        BadInput: the schedule does not hold for clips of ``bundle``.
    """
    ours, theirs = (Pipeline(each, EngineOptions(engine)) for each in (bundle, reference))
    found = []
    with progress.stage("gate, clips by the schedule", len(requests)) as advance:
        for request in requests:
            size = Size.parse(schedule.size)
            asked = replace(
                request,
                steps=None if schedule.timesteps else schedule.steps,
                timesteps=schedule.timesteps,
                guidance=schedule.guidance[1],
                scheduler=schedule.scheduler["class"].lower(),
                frames=size.frames,
                height=size.height,
                width=size.width,
            )
            resolved = ours.resolve(replace(asked, schedule=schedule))
            if resolved.schedule is None:
                raise BadInput(f"{resolved.schedule_note}; make one for it: reelquant schedule")
            fast, whole, wanted = ours.sample(resolved), ours.sample(asked), theirs.sample(asked)
            found.append(
                ScheduledClip(
                    round(psnr(ours.decode(fast), ours.decode(whole)), 2),
                    relative_l2(whole, wanted),
                    relative_l2(fast, whole),
                    relative_l2(fast, wanted),
                )
            )
            advance()
    return found


def schedule_faults(schedule: Schedule, clips: Sequence[ScheduledClip]) -> tuple[Fault, ...]:
    """What is wrong with a schedule that made these ``clips``."""
    promised, least = schedule.measured.get("psnr_p5"), min(clip.psnr for clip in clips)
    found = []
    where = f"schedule {schedule.name}"
    if promised is not None and least < promised - SLACK:
        said = f"a clip comes to {least:.1f} dB of the same clip with every step computed"
        found.append(
            Fault(
                where, f"{said}; {promised:.1f} dB at the 5th percentile are promised, and {SLACK:g} less is the limit"
            )
        )
    worst = max(clips, key=_excess)
    if _excess(worst) > TOGETHER:
        said = f"quantized and scheduled together, a clip differs by {worst.together:.3f} from the reference's"
        found.append(
            Fault(
                where,
                f"{said}, and by {worst.quantized:.3f} and {worst.scheduled:.3f} with each alone; make the schedule on the "
                "quantized bundle: reelquant schedule",
            )
        )
    return tuple(found)


def _excess(clip: ScheduledClip) -> float:
    return clip.together / max(math.hypot(clip.quantized, clip.scheduled), 1e-6)
