"""``reelquant embed``: prompts' embeddings ahead of time."""

from __future__ import annotations

from pathlib import Path

import click

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.commands.options import (
    BUNDLE,
    ENGINE_OPTIONS,
    JSON,
    QUIET,
    print_json,
    say_engine,
    say_unknown,
    shown,
)
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.errors import BadInput
from reelquant.runtime.monitor import Monitor
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.progress import Progress


@click.command()
@BUNDLE
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("prompts", nargs=-1)
@click.option("--file", "listed", type=click.Path(path_type=Path), help="A text file with one prompt a line.")
@ENGINE_OPTIONS
@QUIET
@JSON
def embed(
    bundle: Path,
    folder: Path,
    prompts: tuple[str, ...],
    listed: Path | None,
    options: EngineOptions,
    quiet: bool,
    as_json: bool,
) -> None:
    """Compute the embeddings of PROMPTS, and of the empty one, into FOLDER, for generate --embeddings FOLDER."""
    wanted = [*prompts, *(_read(listed) if listed else [])]
    if not wanted:
        raise BadInput("no prompts; give them as arguments, or a file of them with --file")
    pipeline = Pipeline(Bundle.open(bundle), options, folder)
    say_engine(pipeline.engine_note, quiet)
    unknown = {}
    for prompt in wanted:  # all are checked before the first is computed
        if words := pipeline.tokenizer.check(prompt):
            unknown[prompt] = words
            say_unknown(words, quiet)
    monitor = Monitor()
    with Progress(shown(quiet)) as progress, progress.stage("embed", len(wanted)) as advance:
        for prompt in wanted:
            pipeline.encode_prompt(prompt, monitor=monitor)
            advance()
    if as_json:
        print_json(
            {"folder": str(folder), "prompts": len(wanted), "unknown_words": unknown, "seconds": monitor.seconds}
        )
    else:
        click.echo(f"{folder}: {len(wanted)} prompts and the empty one")


def _read(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # Windows' editors put a mark first
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"cannot read the prompts in {path}: {error}; give a text file with one prompt a line"
        ) from error
    return [line.strip() for line in lines if line.strip()]
