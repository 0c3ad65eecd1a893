"""What a bundle says of itself: ``manifest.json`` as frozen dataclasses, read strictly."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from reelquant.runtime.errors import BundleError
from reelquant.runtime.sizes import Geometry

FORMAT = 1
FILE = "manifest.json"
TASKS = ("t2v", "i2v")
# Plain nested names only: a manifest never reaches outside its folder, nor into hidden files.
_SAFE = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*/)*[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Defaults:
    """What ``generate`` uses when it is not told otherwise; ``steps`` and ``guidance`` are the pipelines' own."""

    frames: int
    height: int
    width: int
    fps: int = 8
    steps: int = 50
    guidance: float = 6.0
    dynamic_guidance: bool = False


@dataclass(frozen=True)
class Component:
    """One network: its graphs by name, and what was done to and measured on them."""

    graphs: dict[str, str]
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

    ``vae`` holds ``scaling_factor`` and ``invert_scale_latents``; ``transformer`` and ``scheduler`` are the
    checkpoint's own configs; ``files`` lists every file of the bundle but the manifest.
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
    quantization: dict[str, Any] | None = None
    engines: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

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
            manifest = cls(
                **{
                    **raw,
                    "defaults": Defaults(**raw["defaults"]),
                    "geometry": Geometry(**raw["geometry"]),
                    "components": {name: Component(**value) for name, value in raw["components"].items()},
                    "files": {name: FileEntry(**value) for name, value in raw["files"].items()},
                }
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BundleError(f"{where} is not a valid manifest ({error}); export the bundle again") from error
        manifest._check(where)
        return manifest

    def _check(self, where: Path) -> None:
        if self.task not in TASKS:
            raise BundleError(f"{where} names the unknown task {self.task!r}; one of {', '.join(TASKS)}")
        named = [graph for component in self.components.values() for graph in component.graphs.values()]
        for name in [*self.files, *named]:
            if not isinstance(name, str) or not _SAFE.fullmatch(name):
                raise BundleError(f"{where} names the unsafe file {name!r}; this bundle cannot be trusted")
        for name in named:
            if name not in self.files:
                raise BundleError(f"{where} names the graph {name} but does not list it; export the bundle again")
