"""What a bundle says of itself: ``manifest.json`` as frozen dataclasses, read strictly."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from reelquant.runtime.bundle.support import BASES, Support
from reelquant.runtime.errors import BadInput, BundleError
from reelquant.runtime.files import replaceable
from reelquant.runtime.models import model_of
from reelquant.runtime.models.cogvideox.geometry import Geometry
from reelquant.runtime.sizes import Size

T = TypeVar("T")

FORMAT = 2
FEW_STEPS = 10  # so few of evenly spaced ones, and clips of an undistilled model are poor
FILE, SIGNATURE = replaceable.MANIFEST, replaceable.SIGNATURE
TASKS = ("t2v", "i2v")
# Plain nested names only: a manifest never reaches outside its folder, nor into hidden files.
_SAFE = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*/)*[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Defaults:
    """What ``generate`` uses when it is not told otherwise; ``steps`` and ``guidance`` are the pipelines' own, or the export's.

    ``timesteps`` are those at which all ``steps`` are taken, of a model that was trained at few of its own; None where the
    scheduler spaces them.
    """

    frames: int
    height: int
    width: int
    fps: int = 8
    steps: int = 50
    guidance: float = 6.0
    dynamic_guidance: bool = False
    timesteps: list[int] | None = None

    @property
    def few_steps(self) -> bool:
        """Whether the model is one that was distilled to few steps, and is at home at no other noise than theirs."""
        return self.timesteps is not None or self.steps <= FEW_STEPS

    @property
    def size(self) -> Size:
        """Of a clip."""
        return Size(self.frames, self.height, self.width)


@dataclass(frozen=True)
class Component:
    """One network: its graphs by name, what they compute in, and what was done to and measured on them.

    ``compute`` is what all that is not quantized computes in; ``formats`` are the numerics of the rest, by name.
    """

    graphs: dict[str, str]
    compute: str = "fp32"
    formats: dict[str, Support] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)
    passes: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FileEntry:
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The whole of ``manifest.json``.

    ``precision`` is the recipe's name, or the base's. ``transformer``, ``vae`` and ``scheduler`` are the checkpoint's own configs,
    or what of them is needed, for the model's ``family`` to read; ``files`` lists every file of the bundle but the manifest.
    """

    task: str
    precision: str
    defaults: Defaults
    geometry: Geometry
    text_tokens: int
    transformer: dict[str, Any]
    vae: dict[str, Any]
    scheduler: dict[str, Any]
    components: dict[str, Component]
    source: dict[str, Any]
    tools: dict[str, str]
    files: dict[str, FileEntry]
    family: str = "cogvideox"
    quantization: dict[str, Any] | None = None
    engines: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def graphs(self) -> Iterator[tuple[str, str]]:
        """(component, graph) of every graph."""
        for name, component in self.components.items():
            for graph in component.graphs:
                yield name, graph

    @property
    def base(self) -> str:
        """What the transformer computes in, but for what of it is quantized; of a bundle without one, what any part does."""
        parts = [self.components[name] for name in ("transformer", *self.components) if name in self.components]
        return parts[0].compute if parts else "fp32"

    @property
    def formats(self) -> dict[str, Support]:
        """The numerics of all components, by name."""
        return {name: support for part in self.components.values() for name, support in part.formats.items()}

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, where: Path) -> Manifest:
        """Parse a manifest.

        Raises:
            BundleError: not JSON, another format, or a field is missing, unknown or of the wrong kind.
        """
        try:
            raw = json.loads(text)
            if raw.get("format") != FORMAT:
                raise BundleError(
                    f"{where} has format {raw.get('format')!r}; this version reads format {FORMAT}: export it again"
                )
            manifest = _strict(
                cls,
                {
                    **raw,
                    "defaults": _strict(Defaults, raw["defaults"]),
                    "geometry": _strict(Geometry, raw["geometry"]),
                    "components": {name: _component(value) for name, value in raw["components"].items()},
                    "files": {name: _strict(FileEntry, value) for name, value in raw["files"].items()},
                },
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise BundleError(f"{where} is not a valid manifest ({error}); export the bundle again") from error
        manifest._check(where)
        return manifest

    def _check(self, where: Path) -> None:
        if self.task not in TASKS:
            raise BundleError(
                f"{where} names the unknown task {self.task!r}, not one of {', '.join(TASKS)}; export the bundle again"
            )
        for component in self.components.values():
            if component.compute not in BASES:
                raise BundleError(
                    f"{where} names the unknown compute dtype {component.compute!r}; export the bundle again"
                )
        model_of(self).check(where)
        self._check_timesteps(where)
        if min(self.defaults.fps, self.text_tokens, *asdict(self.geometry).values()) < 1:
            raise BundleError(f"{where} has an fps, text_tokens or geometry below 1; export the bundle again")
        named = [(part, name) for part, component in self.components.items() for name in component.graphs.values()]
        for name in [*self.files, *(name for _, name in named)]:
            if not isinstance(name, str) or not _SAFE.fullmatch(name):
                raise BundleError(f"{where} names the unsafe file {name!r}; do not use this bundle")
        for part, name in named:
            if name not in self.files or not name.startswith(f"{part}/"):
                raise BundleError(
                    f"{where}: {part}'s graph {name} is not listed in its folder; export the bundle again"
                )

    def _check_timesteps(self, where: Path) -> None:
        timesteps = self.defaults.timesteps
        if timesteps is None:
            return
        try:
            model_of(self).scheduler(timesteps=timesteps)
        except BadInput as error:
            raise BundleError(f"{where}: {error}; export the bundle again") from error
        if len(timesteps) != self.defaults.steps:
            raise BundleError(
                f"{where} has {len(timesteps)} timesteps for its {self.defaults.steps} steps; export again"
            )


def _component(raw: Any) -> Component:
    return _strict(
        Component, {**raw, "formats": {name: _strict(Support, each) for name, each in raw["formats"].items()}}
    )


def _strict(kind: type[T], raw: Any) -> T:
    """``kind(**raw)``, where every field has a value of its annotated kind; an int will do for a float, no bool for an int.

    Raises:
        TypeError: a field is missing, unknown or of another kind.
    """
    made = kind(**raw)
    for name, hint in get_type_hints(kind).items():
        parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        allowed = {get_origin(part) or part for part in parts} | ({int} if float in parts else set())
        if type(getattr(made, name)) not in allowed:
            raise TypeError(f"{name} is {getattr(made, name)!r:.60}, which is not of the kind {hint}")
    return made
