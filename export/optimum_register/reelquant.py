"""``optimum-cli export reelquant …`` and ``optimum-cli reelquant generate …``.

optimum loads every file of the namespace ``optimum.commands.register`` whenever it starts, so nothing is imported here but
optimum's own classes. Arguments, their help and what they do are those of ``reelquant``'s commands.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

NAME = "reelquant"


class _Reelquant(BaseOptimumCLICommand):
    """One command of reelquant's, by its name there."""

    command = ""

    @classmethod
    def parse_args(cls, parser: ArgumentParser) -> None:
        # optimum builds the parsers of all commands at each start: reelquant's are read when one of them is asked for.
        if NAME in sys.argv[1:3]:
            from reelquant.runtime.commands.argparse_options import add_arguments

            add_arguments(parser, cls.command)

    def run(self) -> None:
        from reelquant.runtime.cli import main

        main([self.command, *sys.argv[sys.argv.index(NAME) + (1 if self.command == "export" else 2) :]])


class ReelquantExport(_Reelquant):
    COMMAND = CommandInfo(NAME, "Export a CogVideoX checkpoint to quantized engines that render without torch.")
    command = "export"


class ReelquantGenerate(_Reelquant):
    command = "generate"


class ReelquantBuild(_Reelquant):
    command = "build"


class ReelquantInspect(_Reelquant):
    command = "inspect"


class ReelquantDoctor(_Reelquant):
    command = "doctor"


class ReelquantCommand(BaseOptimumCLICommand):
    COMMAND = CommandInfo(NAME, "Render clips from bundles of reelquant, and look at them.")
    SUBCOMMANDS = (
        CommandInfo("generate", "Render a clip from a prompt (and an image).", ReelquantGenerate),
        CommandInfo("build", "Compile a bundle's graphs for an engine.", ReelquantBuild),
        CommandInfo("inspect", "Say what a bundle holds and how it was made.", ReelquantInspect),
        CommandInfo("doctor", "Say which engines can run here, and why others can't.", ReelquantDoctor),
    )


REGISTER_COMMANDS = [ReelquantCommand, (ReelquantExport, ExportCommand)]
