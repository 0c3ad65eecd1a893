"""What a GPU that need not be here would do with a bundle: whether its clips fit, how its networks are held, the least time they take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.device_memory import StageMemory, advice, choose, describe, kept_bytes, lacking
from reelquant.runtime.engines.options import CURRENT
from reelquant.runtime.engines.registry import get_engine
from reelquant.runtime.engines.tensorrt.memory import records_of
from reelquant.runtime.engines.tensorrt.roofline import clip_seconds
from reelquant.runtime.errors import BadInput
from reelquant.runtime.machine.cards import Card
from reelquant.runtime.models import model_of
from reelquant.runtime.models.cogvideox.stages import IMAGE, clip_stages
from reelquant.runtime.sampling.schedule import load_schedule, schedules_of
from reelquant.runtime.sizes import Size


@dataclass(frozen=True)
class OnCard:
    """A clip of ``size`` on a GPU with ``free`` bytes, on one engine. ``way`` is "keep", "reload", or None where it does not fit, and
    ``advice`` what would. ``mismatch`` says why the bundle's engines are not for this card. ``seconds`` are the least of each stage, with every
    step computed; ``schedules`` those of a whole clip by each of the bundle's schedules. Both None where nothing is known of them.
    """

    engine: str
    size: str
    tiled: bool
    free: int
    stages: tuple[StageMemory, ...]
    way: str | None
    advice: tuple[str, ...]
    mismatch: str | None
    seconds: dict[str, float] | None
    schedules: dict[str, float] | None

    def as_json(self) -> dict[str, Any]:
        stages = [stage.as_json() for stage in self.stages]
        return {**asdict(self), "stages": stages, "kept_bytes": kept_bytes(self.stages)}


def on_card(bundle: Bundle, card: Card | None, free: int, size: Size | None, tiled: bool) -> list[OnCard]:
    """By each of the bundle's engines that computes on a GPU. Of a GPU of which only the memory is known, there are no seconds.

    Raises:
        BadInput: it has no such engine, none for this size, or they were built by a version that did not record what they take.
    """
    manifest, model = bundle.manifest, model_of(bundle.manifest)
    size = model.checked(size or manifest.defaults.size)
    rows = 2 if manifest.defaults.guidance > 1 else 1
    source = IMAGE if manifest.task == "i2v" else None
    stages = clip_stages(model, size, rows, rows * manifest.defaults.steps, tiled, source)
    found = []
    for name in manifest.engines:
        needs = get_engine(name).clip_memory(bundle, size, tiled, stages)
        if needs is None:
            continue
        short = lacking(needs.stages, free, None)
        records = records_of(manifest, name, size, tiled, stages)
        seconds = clip_seconds(records, stages, card) if card else None
        found.append(
            OnCard(
                engine=name,
                size=str(size),
                tiled=tiled,
                free=free,
                stages=needs.stages,
                way=choose(needs.stages, free),
                advice=(short, *advice(needs.stages, free, None, needs.ways())) if short else (),
                mismatch=_mismatch(manifest.engines[name], card) if card else None,
                seconds=seconds,
                schedules=_by_schedule(bundle, seconds, rows * manifest.defaults.steps) if seconds else None,
            )
        )
    if not found:
        raise BadInput(
            f"{bundle.path} has no engines for a GPU whose memory is known; build them with this version: "
            "reelquant build BUNDLE --engine tensorrt-rtx --gpu …"
        )
    return found


def lines(found: OnCard) -> Iterator[str]:
    """For a person."""
    yield f"{found.engine}, {found.size}{' in tiles' if found.tiled else ''}, {found.free / 1e9:.2f} GB for engines"
    yield from describe(found.stages)
    if found.way:
        yield f"fits: {'networks stay loaded' if found.way == 'keep' else 'networks are loaded one stage at a time'}"
    else:
        yield "does not fit: " + "; ".join(found.advice)
    if found.mismatch:
        yield found.mismatch
    if found.seconds:
        parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in found.seconds.items())
        yield f"at least {sum(found.seconds.values()):.2f} s a clip ({parts}): the card's own limits, not measured"
    for name, seconds in (found.schedules or {}).items():
        yield f"at least {seconds:.2f} s by the schedule {name}"


def _by_schedule(bundle: Bundle, seconds: dict[str, float], forwards: int) -> dict[str, float]:
    forward = seconds["transformer"] / forwards
    rest = sum(seconds.values()) - seconds["transformer"]
    return {name: rest + forward * load_schedule(name, bundle).forwards for name in schedules_of(bundle)}


def _mismatch(record: dict[str, Any], card: Card) -> str | None:
    """Why engines that were built so are not for this card."""
    built = [str(record["gpu"])] if record["targets"] == [CURRENT] else [str(name) for name in record["targets"]]
    if any(card.target in name for name in built):
        return None
    return f"its engines are for {', '.join(built)}, and {card.name} is {card.target}: they would not load there"
