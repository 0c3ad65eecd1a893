"""A file of clips to make, one JSON object a line, and which of them are made already."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reelquant.runtime.errors import BadInput
from reelquant.runtime.media.video import read_provenance
from reelquant.runtime.media.writers import SUFFIXES
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.remake import pixels_digest
from reelquant.runtime.request import Request, ResolvedRequest
from reelquant.runtime.sizes import Size

# What a line may say, and of which types; a null is as if it said nothing.
_FIELDS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "prompt": (str,),
    "negative_prompt": (str,),
    "image": (str,),
    "video": (str,),
    "strength": (int, float),
    "seed": (int,),
    "steps": (int,),
    "timesteps": (list,),
    "guidance": (int, float),
    "scheduler": (str,),
    "schedule": (str,),
    "size": (str,),
}
_NAME = re.compile(r"[\w][\w .-]{0,99}")
DIGEST = "job"  # where a clip's provenance says which job it is


@dataclass(frozen=True)
class Job:
    """One clip: the line of the file that asks for it, what it is called, and the request."""

    line: int
    name: str
    request: Request

    def resolved(self, pipeline: Pipeline) -> ResolvedRequest:
        """Raises:
        BadInput: the request cannot be met; the message names the line.
        """
        try:
            return pipeline.resolve(self.request)
        except BadInput as error:
            raise BadInput(f"line {self.line} ({self.name}): {error}") from error

    def digest(self, pipeline: Pipeline, resolved: ResolvedRequest) -> str:
        """Of all that decides the clip's frames: equal for the same clip of the same bundle on the same engine."""
        facts = {
            "bundle": pipeline.bundle.digest,
            "engine": [pipeline.engine.name, pipeline.engine.version()],
            "prompts": [self.request.prompt, self.request.negative_prompt],
            "size": asdict(resolved.size),
            "steps": [resolved.steps, resolved.skip, *(resolved.scheduler.listed or ())],
            "guidance": resolved.guidance,
            "seed": resolved.seed,
            "scheduler": type(resolved.scheduler).__name__,
            "image": pixels_digest(resolved.image),
            "video": pixels_digest(resolved.video),
            "schedule": resolved.schedule.digest if resolved.schedule else None,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def read_jobs(path: Path, seed: int = 0, suffix: str = ".mp4") -> list[Job]:
    """The jobs of a file of JSON lines, such as ``{"prompt": "…", "seed": 7, "name": "tram"}``; empty lines are left out.

    A line without a name is called by its number, and one without a seed has ``seed`` and that number added up, so that the same file
    makes the same clips again. Paths of images and videos are taken from the folder of the file.

    Raises:
        BadInput: the file cannot be read, a line is no such object, or two lines have one name.
    """
    if suffix not in SUFFIXES:
        raise BadInput(f"clips cannot be saved as {suffix}; one of {', '.join(SUFFIXES)}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path} ({error}); give a file with a JSON object a line") from error
    jobs = [_job(text, number, seed, path) for number, text in enumerate(lines, 1) if text.strip()]
    if not jobs:
        raise BadInput(
            f'{path} has no lines; write one for each clip, such as {{"prompt": "a red tram climbs a street"}}'
        )
    lines_of: dict[str, int] = {}
    for job in jobs:
        first = lines_of.setdefault(job.name.lower(), job.line)  # some disks know no case
        if first != job.line:
            raise BadInput(
                f"{path}: lines {first} and {job.line} both make a clip called {job.name!r}; give one another name"
            )
    return jobs


def is_made(file: Path, digest: str) -> bool:
    """Whether ``file`` is the clip of this digest.

    Raises:
        BadInput: it is there and is another.
    """
    if not file.exists():
        return False
    try:
        found = read_provenance(file).get(DIGEST)
    except BadInput:
        found = None
    if found != digest:
        raise BadInput(
            f"{file} is there and is not the clip that its line asks for (another prompt, seed, bundle or engine made it); choose "
            "another folder, or remove it"
        )
    return True


def _job(text: str, number: int, seed: int, path: Path) -> Job:
    try:
        raw: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: line {number} is no JSON object: {error}") from error
    if not isinstance(raw, dict):
        raise BadInput(
            f'{path}: line {number} is no JSON object; write one such as {{"prompt": "a red tram climbs a street"}}'
        )
    said = {key: value for key, value in raw.items() if value is not None}
    for key, value in said.items():
        if key not in _FIELDS:
            raise BadInput(f"{path}: line {number} says {key!r:.50}, which is none of {', '.join(_FIELDS)}")
        if not isinstance(value, _FIELDS[key]) or isinstance(value, bool):
            raise BadInput(f"{path}: line {number}: {key} is {value!r:.50}, not {_FIELDS[key][-1].__name__}")
    if "prompt" not in said:
        raise BadInput(f"{path}: line {number} has no prompt")
    name = said.pop("name", f"{number:04}")
    if not _NAME.fullmatch(name):
        raise BadInput(
            f"{path}: line {number}: the name {name!r:.60} is not of letters, digits, spaces, '.', '_' and '-'"
        )
    sides = asdict(Size.parse(said.pop("size"))) if "size" in said else {}
    for source in ("image", "video"):
        if source in said:
            said[source] = path.parent / said[source]
    said.setdefault("seed", seed + number)
    return Job(number, name, Request(**said, **sides))
