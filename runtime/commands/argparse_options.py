"""A command's options for a program that uses argparse, so that there is one list of them: the command's own."""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction
from typing import Any

import click

from reelquant.runtime.cli import cli


def add_arguments(parser: ArgumentParser, command: str) -> None:
    """Add what ``reelquant COMMAND`` takes to ``parser``. Values stay text: click reads and checks them when the command runs.

    Raises:
        MissingExtra: what the command imports is not installed.
    """
    context = click.Context(cli)
    found = cli.get_command(context, command)
    assert found is not None, command
    parser.description = found.get_short_help_str(1000)
    for parameter in found.params:
        if isinstance(parameter, click.Argument):
            count = {-1: "*", 1: None if parameter.required else "?"}[parameter.nargs]
            parser.add_argument(parameter.human_readable_name, nargs=count)
        elif isinstance(parameter, click.Option):
            parser.add_argument(*parameter.opts, **_option(parameter, context))


def _option(option: click.Option, context: click.Context) -> dict[str, Any]:
    record = option.get_help_record(context)
    kind: dict[str, Any] = {"help": (record[1] if record else option.help or "").replace("%", "%%")}
    if option.secondary_opts:
        return {**kind, "action": BooleanOptionalAction}
    if option.is_flag:
        return {**kind, "action": "store_true"}
    return {**kind, "required": option.required, "metavar": option.make_metavar(context),
            **({"action": "append"} if option.multiple else {})}  # fmt: skip
