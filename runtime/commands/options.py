"""Options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any

import click

from reelquant.runtime.bundle.trust import Trust
from reelquant.runtime.engines.options import AUTO, CURRENT, BuildSpec, EngineOptions, parse_gpus
from reelquant.runtime.engines.registry import DEFAULT_ENGINE, engine_names
from reelquant.runtime.errors import BadInput
from reelquant.runtime.sizes import NOTATION, Size

BUNDLE = click.argument("bundle", type=click.Path(path_type=Path))
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
QUIET = click.option("--quiet", is_flag=True, help="Show no progress.")


def lower(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """A callback for names of ours: INT8 is int8; a file's name stays as it is."""
    return value if value is None or value.endswith(".toml") else value.lower()


def engine_option(help: str, default: str | None = None) -> Callable[[Any], Any]:
    """``--engine NAME``; upper case is taken for lower."""
    text = f"One of {', '.join(engine_names())}{help}."
    return click.option(
        "--engine", default=default, show_default=default is not None, metavar="NAME", callback=lower, help=text
    )


ENGINE = engine_option("", DEFAULT_ENGINE)
TILED = click.option(
    "--tiled", is_flag=True, help="Decode and encode large frames in tiles: much less memory, a little slower."
)
THREADS = click.option(
    "--threads", type=click.IntRange(1), help="CPU threads [default: $REELQUANT_THREADS, else the engine's choice]."
)


def count_option(name: str, default: int, help: str, least: int = 1, most: int | None = None) -> Callable[[Any], Any]:
    """A whole number from ``least`` on, whose default stands in --help."""
    return click.option(name, type=click.IntRange(least, most), default=default, show_default=True, help=help)


def option_group(
    into: str, make: Callable[..., Any], *options: Callable[[Any], Any], prefix: str = ""
) -> Callable[[Any], Any]:
    """Options that a command takes as one value: ``make`` of them, as its parameter ``into``. They are named as the
    parameters of ``make``, with ``prefix`` ("calibration-") before each where a command speaks of other clips too.
    """
    names = {prefix.replace("-", "_") + name: name for name in signature(make).parameters}

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def collected(*arguments: Any, **values: Any) -> Any:
            made = make(**{name: values.pop(option) for option, name in names.items()})
            return command(*arguments, **values, **{into: made})

        for option in reversed(options):
            collected = option(collected)
        return collected

    return decorate


def size_option(help: str, name: str = "--size") -> Callable[[Any], Any]:
    """``--size 49x480x720``, once."""

    def parse(ctx: click.Context, option: click.Parameter, value: str | None) -> Size | None:
        return None if value is None else Size.parse(value)

    return click.option(name, callback=parse, metavar=NOTATION, help=help)


def timesteps_option(help: str) -> Callable[[Any], Any]:
    """``--timesteps 999,856,665,399``, once; whether a model can be run at them is for others to say."""

    def parse(ctx: click.Context, option: click.Parameter, value: str | None) -> tuple[int, ...] | None:
        try:
            return None if value is None else tuple(int(each) for each in value.split(","))
        except ValueError as error:
            raise BadInput(
                f"--timesteps {value!r:.60} is no list of whole numbers; write them with commas, such as 999,856,665,399"
            ) from error

    return click.option("--timesteps", callback=parse, metavar="T,T,…", help=help)


def clips_option(help: str) -> Callable[[Any], Any]:
    """``--clip 49x480x720``, as often as there are sizes."""

    def parse(ctx: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[Size, ...]:
        return tuple(map(Size.parse, values))

    return click.option("--clip", "clips", multiple=True, callback=parse, metavar=NOTATION, help=help)


def _engine_options(
    engine: str | None, threads: int | None, batch: int | None, device: int, keys: tuple[Path, ...], trust: bool
) -> EngineOptions:
    return EngineOptions(engine, threads, device, Trust(keys, trust), batch)


# How a bundle is run: ``options: EngineOptions``.
ENGINE_OPTIONS = option_group(
    "options",
    _engine_options,
    engine_option(
        f", {AUTO} [default: {AUTO}, what tune found; else what the bundle was built for, where it runs here]"
    ),
    THREADS,
    click.option(
        "--batch", type=click.IntRange(1, 2), help="Halves of guidance in one run [default: what tune found, else 2]."
    ),
    click.option(
        "--device",
        type=click.IntRange(0),
        default=EngineOptions.device,
        show_default=True,
        help="Number of the GPU, as in nvidia-smi, for engines that compute on one.",
    ),
    click.option(
        "--key",
        "keys",
        multiple=True,
        type=click.Path(path_type=Path),
        help="Public key (PEM) whose engines may be loaded.",
    ),
    click.option("--trust", is_flag=True, help="Load this bundle's engines whoever built them: they are code."),
)


def _clips_to_build(gpu: str, clips: tuple[Size, ...], dynamic: bool, tiled: bool) -> BuildSpec:
    return BuildSpec(clips, dynamic, tiled, parse_gpus(gpu))


def _build_spec(
    gpu: str, clips: tuple[Size, ...], dynamic: bool, tiled: bool, level: int, cache: Path | None
) -> BuildSpec:
    return BuildSpec(clips, dynamic, tiled, parse_gpus(gpu), level, cache=cache)


_TARGETS = (
    click.option(
        "--gpu",
        default=CURRENT,
        show_default=True,
        metavar="NAMES",
        help="GPUs to build for, such as sm89,sm120 (TensorRT).",
    ),
    clips_option("Clips to build for, as often as there are sizes [default: the bundle's] (TensorRT)."),
    click.option(
        "--dynamic", is_flag=True, help="One engine for all clips from the smallest to the largest size (TensorRT)."
    ),
    TILED,
)
# What TensorRT builds, as a linter has to know it: ``spec: BuildSpec``.
CLIPS_TO_BUILD = option_group("spec", _clips_to_build, *_TARGETS)
# The same, as it is built: ``spec: BuildSpec``.
BUILD_SPEC = option_group(
    "spec",
    _build_spec,
    *_TARGETS,
    click.option(
        "--level",
        type=click.IntRange(0, 5),
        default=BuildSpec.level,
        show_default=True,
        help="Builder optimization level (TensorRT).",
    ),
    click.option(
        "--cache",
        type=click.Path(path_type=Path),
        help="Folder of engines built before (TensorRT) [default: the user's].",
    ),
)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, sort_keys=False))


def say_engine(note: str, quiet: bool) -> None:
    """Say that a bundle runs on another engine than it was built for."""
    if note and not quiet:
        click.echo(note, err=True)


def say_unknown(words: Sequence[str], quiet: bool) -> None:
    """Name the words of a prompt that the model cannot tell from one another."""
    if words and not quiet:
        click.echo(f"the model does not know {', '.join(words)}: it reads all such words alike", err=True)


def end_with_flaws(context: click.Context, flaws: tuple[str, ...], output: Path) -> None:
    """A clip that shows nothing, or nothing that moves, is no success: say so, and end with exit code 1."""
    for flaw in flaws:
        click.echo(
            f"{output} is {flaw}: the file was written, but generation probably failed; try "
            "another seed, and if the clip stays so, compare the bundle with its fp32 reference: reelquant gate",
            err=True,
        )
        context.exit(1)


def shown(quiet: bool) -> bool | None:
    """Whether progress is shown: never when quiet, else where stderr is a terminal."""
    return False if quiet else None
