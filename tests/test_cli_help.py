"""--help of the group and of every command."""

from __future__ import annotations

import re

import click
import pytest

from reelquant.runtime.cli import COMMANDS, cli
from tests.command_line import run


def test_the_group_lists_every_command(capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["-h"]):
        ran = run(capfd, *arguments)
        assert (ran.code, ran.err) == (0, "")
        lines = ran.out.splitlines()
        for name, (_, _, text) in COMMANDS.items():
            assert any(re.fullmatch(rf"  {name} +{re.escape(text)}", line) for line in lines), name


def test_the_version(capfd: pytest.CaptureFixture[str]) -> None:
    ran = run(capfd, "--version")
    assert ran.code == 0 and re.search(r"\d+\.\d+\.\d+", ran.out)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_its_options(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    ran = run(capfd, name, "--help")
    assert (ran.code, ran.err) == (0, "")
    said = re.sub("- ", "-", " ".join(ran.out.split()))  # lines break after hyphens too
    command = cli.get_command(click.Context(cli), name)
    assert command is not None and command.help and re.sub("- ", "-", " ".join(command.help.split())) in said
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert (
                parameter.help
                and parameter.opts[-1] in said
                and re.sub("- ", "-", " ".join(parameter.help.split())) in said
            )
        else:
            assert str(parameter.name).upper() in ran.out.splitlines()[0]


def test_an_unknown_command_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    ran = run(capfd, "exprot")
    assert (ran.code, ran.out) == (2, "") and "No such command 'exprot'" in ran.err
