"""Options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from reelquant.runtime.engine import DEFAULT_ENGINE, ENGINES
from reelquant.runtime.sizes import Size, parse_clip, parse_size

BUNDLE = click.argument("bundle", type=click.Path(path_type=Path))
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
QUIET = click.option("--quiet", is_flag=True, help="Show no progress.")
ENGINE = click.option(
    "--engine", default=DEFAULT_ENGINE, show_default=True, metavar="NAME", help=f"One of {', '.join(ENGINES)}."
)
TILED = click.option(
    "--tiled", is_flag=True, help="Decode and encode large frames in tiles: much less memory, a little slower."
)
THREADS = click.option("--threads", type=click.IntRange(1), help="CPU threads [default: the engine's choice].")
KEYS = click.option(
    "--key",
    "keys",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Public key (PEM) whose engines may be loaded.",
)
TRUST = click.option("--trust", is_flag=True, help="Load this bundle's engines whoever built them: they are code.")


def size_option(help: str, name: str = "--size") -> Callable[[Any], Any]:
    def parse(ctx: click.Context, option: click.Parameter, value: str | None) -> tuple[int, int] | None:
        return None if value is None else parse_size(value)

    return click.option(name, callback=parse, metavar="HEIGHTxWIDTH", help=help)


GPU = click.option(
    "--gpu",
    default="current",
    show_default=True,
    metavar="NAMES",
    help="GPUs to build for, such as sm89,sm120 (TensorRT).",
)
DYNAMIC = click.option(
    "--dynamic", is_flag=True, help="One engine for all clips from the smallest to the largest size (TensorRT)."
)
CACHE = click.option(
    "--cache", type=click.Path(path_type=Path), help="Folder of engines built before (TensorRT) [default: the user's]."
)


def clips_option(help: str) -> Callable[[Any], Any]:
    """``--clip 49x480x720``, as often as there are sizes."""

    def parse(ctx: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[Size, ...]:
        return tuple(map(parse_clip, values))

    return click.option("--clip", "clips", multiple=True, callback=parse, metavar="FRAMESxHEIGHTxWIDTH", help=help)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, sort_keys=False))


def end_with_flaws(context: click.Context, flaws: tuple[str, ...], output: Path) -> None:
    """A clip that shows nothing, or nothing that moves, is no success: say so, and end with exit code 1."""
    for flaw in flaws:
        click.echo(
            f"{output} is {flaw}: written, but its making most likely broke; try another seed, and if it stays, hold the "
            "bundle against its fp32 one: reelquant gate",
            err=True,
        )
        context.exit(1)


def shown(quiet: bool) -> bool | None:
    """Whether progress is shown: never when quiet, else where stderr is a terminal."""
    return False if quiet else None
