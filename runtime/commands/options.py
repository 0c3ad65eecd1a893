"""Options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from reelquant.runtime.engine import DEFAULT_ENGINE
from reelquant.runtime.sizes import parse_size

BUNDLE = click.argument("bundle", type=click.Path(path_type=Path))
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
QUIET = click.option("--quiet", is_flag=True, help="Show no progress.")
ENGINE = click.option(
    "--engine", default=DEFAULT_ENGINE, show_default=True, metavar="NAME", help="openvino or onnxruntime."
)
TILED = click.option(
    "--tiled", is_flag=True, help="Decode and encode large frames in tiles: much less memory, a little slower."
)
THREADS = click.option("--threads", type=click.IntRange(1), help="CPU threads [default: the engine's choice].")


def size_option(help: str, name: str = "--size") -> Callable[[Any], Any]:
    def parse(ctx: click.Context, option: click.Parameter, value: str | None) -> tuple[int, int] | None:
        return None if value is None else parse_size(value)

    return click.option(name, callback=parse, metavar="HEIGHTxWIDTH", help=help)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, sort_keys=False))


def shown(quiet: bool) -> bool | None:
    """Whether progress is shown: never when quiet, else where stderr is a terminal."""
    return False if quiet else None
