"""``reelquant export --plan``: what an export and one clip need, and whether this machine has it, before any work."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from reelquant.export.checkpoint import Checkpoint
from reelquant.export.needs import (
    Requirements,
    bundle_bytes,
    calibration_bytes,
    component_needs,
    engine_memory,
    largest_block,
    moments_bytes,
)
from reelquant.quant.recipe import Recipe
from reelquant.runtime.bundle.manifest import Defaults
from reelquant.runtime.bundle.support import BASES
from reelquant.runtime.engines.device_memory import KEPT, RELOADED, StageMemory, choose
from reelquant.runtime.errors import BadInput
from reelquant.runtime.machine.cards import CARDS
from reelquant.runtime.machine.memory import available_memory
from reelquant.runtime.sizes import Size

# Of the largest engine's bytes, what the process takes that builds it: 3.3 and 3.6 were measured at 2b's (docs/benchmarks.md).
BUILDER = 3.6
TRACER = 800 << 20  # bytes: Python, torch and a full-depth graph without weights


@dataclass(frozen=True)
class Choices:
    """What a user can change to make an export fit; ``calibration`` is the size of the clips for it, if not ``size``. ``base`` is what all that
    is not quantized computes in.
    """

    size: Size
    precision: str = "fp32"
    text_weights: str = "fp32"
    engine: str = "openvino"
    tiled: bool = False
    calibration: Size | None = None
    base: str = "fp32"

    def options(self) -> str:
        """As the command line takes them."""
        text = f"--precision {self.precision} --text-weights {self.text_weights} "
        if self.precision not in BASES and self.base != "fp32":
            text += f"--base {self.base} "
        text += f"--size {self.size}"
        if self.precision not in BASES and self.calibration and self.calibration != self.size:
            text += f" --calibration-size {self.calibration}"
        return text + (", and generate --tiled" if self.tiled else "")


@dataclass(frozen=True)
class Plan:
    """What ``choices`` need, in bytes: ``memory`` at a clip's worst moment, with one network in it at a time;
    ``disk`` of the export's files, those it removes again counted; ``calibration_memory`` 0 where none is due. With ``on_device``, ``memory``
    is of the engine's own device, and ``build_memory`` what its builder takes of this machine's; ``cards`` says of each known GPU how a
    clip runs there ("keep", "reload", or None where it does not fit) and the least seconds it takes, None where the GPU lacks a format.
    """

    choices: Choices
    latent_shape: tuple[int, ...]
    video_tokens: int
    text_tokens: int
    components: dict[str, Requirements]
    memory: int
    trace_memory: int
    calibration_memory: int
    bundle: int
    disk: int
    on_device: bool = False
    build_memory: int = 0
    cards: dict[str, tuple[str | None, float | None]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        components = {name: {**asdict(need), "flops": need.flops} for name, need in self.components.items()}
        return {**asdict(self), "components": components, "flops": self.flops}

    @property
    def flops(self) -> float:
        """Of one clip."""
        return sum(need.flops for need in self.components.values())

    def lacks(self, memory: int | None, disk: int) -> list[str]:
        """What of ``memory`` and ``disk`` (bytes free) is too little, in words."""
        here = 0 if self.on_device else self.memory
        wanted = max(here, self.trace_memory, self.calibration_memory, self.build_memory)
        lacking = []
        if memory is not None and wanted > memory:
            lacking.append(f"{wanted / 1e9:.1f} GB of memory where {memory / 1e9:.1f} are free")
        if self.disk > disk:
            lacking.append(f"{self.disk / 1e9:.1f} GB of disk where {disk / 1e9:.1f} are free")
        return lacking


def make_plan(checkpoint: Checkpoint, defaults: Defaults, choices: Choices) -> Plan:
    """Count what exporting ``checkpoint`` and rendering one clip need."""
    recipe = None if choices.precision in BASES else Recipe.load(choices.precision)
    geometry, size = checkpoint.geometry, choices.size
    needs = component_needs(
        checkpoint, size, choices.engine, recipe, choices.text_weights,
        batch=2 if defaults.guidance > 1 else 1, steps=defaults.steps, tiled=choices.tiled,
        base=choices.base,
    )  # fmt: skip
    bundle = bundle_bytes(checkpoint, recipe, choices.text_weights, choices.engine, choices.base)
    memory = engine_memory(choices.engine)
    engines = _engine_bytes(needs) if memory.on_device else {}
    derived = recipe is not None or choices.base != "fp32"  # from a traced bundle that is removed again
    traced = bundle_bytes(checkpoint, None, choices.text_weights, choices.engine)
    return Plan(
        choices=choices,
        latent_shape=geometry.latent_shape(size),
        video_tokens=geometry.video_tokens(size),
        text_tokens=checkpoint.text_tokens,
        components=needs,
        memory=memory.process + max(need.memory for need in needs.values()),
        trace_memory=TRACER + 2 * largest_block(checkpoint),
        calibration_memory=calibration_bytes(checkpoint, choices.calibration or size) if recipe else 0,
        bundle=bundle + sum(engines.values()),
        disk=bundle + sum(engines.values()) + (traced if derived else 0) + (moments_bytes(checkpoint) if recipe else 0),
        on_device=memory.on_device,
        build_memory=int(BUILDER * max(engines.values(), default=0)),
        cards=_on_cards(needs) if memory.on_device else {},
    )


def _engine_bytes(needs: Mapping[str, Requirements]) -> dict[str, int]:
    """Of the engines of each component: every graph of a VAE holds its weights again. Only what a clip runs is counted."""
    return {name: need.weights for name, need in needs.items()}


def _on_cards(needs: Mapping[str, Requirements]) -> dict[str, tuple[str | None, float | None]]:
    stages = [StageMemory(name, need.weights, need.activations, 0, need.caches) for name, need in needs.items()]
    found = {}
    for card in CARDS.values():
        seconds = [each for need in needs.values() if (each := need.seconds(card)) is not None]
        found[card.name] = choose(stages, card.free), sum(seconds) if len(seconds) == len(needs) else None
    return found


def describe(plan: Plan) -> Iterator[str]:
    """The plan as lines for a person."""
    size, frames = plan.choices.size, plan.latent_shape[0]
    yield f"clip: {size}, latents {frames}x{plan.latent_shape[2]}x{plan.latent_shape[3]}"
    yield f"tokens: {plan.video_tokens} of video and {plan.text_tokens} of text; {plan.flops / 1e12:,.1f} TFLOP a clip"
    yield f"{'component':13} {'parameters':>11} {'disk':>9} {'weights':>9} {'activations':>12} {'TFLOP':>10}"
    for name, need in plan.components.items():
        yield (
            f"{name:13} {need.parameters / 1e6:9.1f} M {need.disk / 1e9:6.2f} GB {need.weights / 1e9:6.2f} GB "
            f"{(need.activations + need.caches) / 1e9:9.2f} GB {need.flops / 1e12:10.1f}"
        )
    yield (
        f"memory: {plan.memory / 1e9:.2f} GB {'of a GPU ' if plan.on_device else ''}for a clip on {plan.choices.engine}, one network at a "
        f"time{', decoded in tiles' if plan.choices.tiled else ''}; {plan.trace_memory / 1e9:.2f} GB for tracing"
        + (f", {plan.build_memory / 1e9:.2f} GB for building engines" if plan.on_device else "")
    )
    if plan.calibration_memory:
        clip = plan.choices.calibration or size
        yield f"calibration: {plan.calibration_memory / 1e9:.2f} GB of memory, on clips of {clip}"
    yield f"disk: {plan.bundle / 1e9:.2f} GB for the bundle, {plan.disk / 1e9:.2f} GB while it is made"
    for name, (way, seconds) in plan.cards.items():
        held = {KEPT: "networks stay loaded", RELOADED: "one network at a time", None: "does not fit"}[way]
        least = "its tensor cores lack a format" if seconds is None else f"at least {seconds:,.1f} s a clip"
        yield f"{name:10} {held:21} {least}"
    if plan.cards:
        yield "(seconds are what the cards' own limits allow, not measured)"


def nearest_fit(
    checkpoint: Checkpoint, defaults: Defaults, choices: Choices, memory: int | None, disk: int
) -> Plan | None:
    """The first of the ways to need less that fits: smaller calibration clips, tiles, an INT8 text encoder, INT8, then fewer and smaller frames."""
    choices = replace(choices, calibration=_calibration_that_fits(checkpoint, choices, memory))
    for candidate in _ways(choices, checkpoint):
        plan = make_plan(checkpoint, defaults, candidate)
        if not plan.lacks(memory, disk):
            return plan
    return None


def refuse_what_cannot_fit(checkpoint: Checkpoint, out: Path, defaults: Defaults, plan: Plan) -> None:
    """Hold ``plan`` against this machine.

    Raises:
        BadInput: it has too little; the message says of what, and what would fit.
    """
    memory, disk = available_memory(), free_disk(out)
    if lacking := plan.lacks(memory, disk):
        fit = nearest_fit(checkpoint, defaults, plan.choices, memory, disk)
        hint = f"what fits: {fit.choices.options()}" if fit else "nothing smaller fits either, so use a larger machine"
        raise BadInput(f"{checkpoint.name} needs {' and '.join(lacking)}; {hint}")


def free_disk(out: Path) -> int:
    """Bytes that can be written where ``out`` will be."""
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _ways(choices: Choices, checkpoint: Checkpoint) -> Iterator[Choices]:
    """Ever more modest choices, each step kept in those after it."""
    yield choices  # with calibration on smaller clips this may do
    choices = replace(choices, tiled=True)
    yield choices
    if choices.text_weights != "int8":
        choices = replace(choices, text_weights="int8")
        yield choices
    if choices.precision in BASES:
        choices = replace(choices, precision="int8")
        yield choices
    for size in checkpoint.model.smaller(choices.size):
        yield replace(choices, size=size)


def _calibration_that_fits(checkpoint: Checkpoint, choices: Choices, memory: int | None) -> Size:
    """The size that was chosen, or the first smaller one that ``memory`` (bytes) is enough for."""
    wanted = choices.calibration or choices.size
    if memory is None:
        return wanted
    sizes = [wanted, *checkpoint.model.smaller(wanted)]
    return next((size for size in sizes if calibration_bytes(checkpoint, size) <= memory), wanted)
