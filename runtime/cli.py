"""The command line: a lazy group, so that ``reelquant --help`` and ``generate`` import neither torch nor onnx."""

from __future__ import annotations

import io
import sys
from importlib import import_module
from typing import NoReturn

import click

from reelquant.runtime.errors import MissingExtra, ReelquantError
from reelquant.runtime.machine.interrupt import SAID, Interruptible

# Command → where it lives, the extra it needs, and its line in --help (kept here so that --help imports nothing).
COMMANDS = {
    "export": ("reelquant.export.commands:export", "export", "Run the whole road: a checkpoint in, a bundle out."),
    "trace": ("reelquant.export.commands:trace", "export", "Stage 1: a checkpoint's networks as an fp32 bundle."),
    "calibrate": (
        "reelquant.quant.commands.calibrate:calibrate",
        "export",
        "Stage 2: observe a bundle's activation ranges.",
    ),
    "quantize": ("reelquant.quant.commands.quantize:quantize", "export", "Stage 3: insert Q/DQ by a recipe."),
    "rotate": (
        "reelquant.quant.commands.rotate:rotate",
        "export",
        "Before stage 2: a Hadamard rotation in to_v and to_out.",
    ),
    "quantize-decoder": (
        "reelquant.quant.commands.decoder:decoder",
        "export",
        "After stage 3: the VAE decoder in INT8, for OpenVINO.",
    ),
    "gate": (
        "reelquant.quant.commands.gate:gate",
        "export",
        "Compare a quantized bundle with its fp32 reference.",
    ),
    "schedule": (
        "reelquant.quant.commands.schedule:schedule",
        "export",
        "Find which steps of a clip can be left out.",
    ),
    "lint": ("reelquant.quant.lint.command:lint", "export", "Say what of a bundle TensorRT would refuse, without it."),
    "build": ("reelquant.runtime.commands.build:build", "", "Stage 4: compile a bundle's graphs for an engine."),
    "tune": ("reelquant.runtime.commands.tune:tune", "", "Measure the fastest way to run a bundle here, and keep it."),
    "generate": ("reelquant.runtime.commands.generate:generate", "", "Render a clip from a prompt (and an image)."),
    "batch": ("reelquant.runtime.commands.batch:batch", "", "Make many clips, none of them twice."),
    "embed": ("reelquant.runtime.commands.embed:embed", "", "Compute prompts' embeddings ahead, for a run without T5."),
    "decode": ("reelquant.runtime.commands.decode:decode", "", "Make a clip of latents that generate --latents kept."),
    "inspect": ("reelquant.runtime.commands.inspect:inspect", "", "Say what a bundle holds and how it was made."),
    "sign": ("reelquant.runtime.commands.sign:sign", "", "Sign a bundle, so that others can load its engines."),
    "verify": ("reelquant.runtime.commands.verify:verify", "", "Check every file of a bundle against its hash."),
    "doctor": ("reelquant.runtime.commands.doctor:doctor", "", "Say which engines can run here, and why others can't."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are run or asked for help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        target, extra, _ = COMMANDS[cmd_name]
        module, _, name = target.partition(":")
        try:
            command: click.Command = getattr(import_module(module), name)
        except ModuleNotFoundError as error:
            # Of a standard module, or of one that every installation has, the system or the installation is broken.
            package = (error.name or "reelquant").split(".")[0]
            if not extra or package == "reelquant" or package in sys.stdlib_module_names:
                raise
            raise MissingExtra(f"reelquant {cmd_name} needs {error.name}, which", extra) from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="reelquant")
def cli() -> None:
    """Turn a CogVideoX checkpoint into quantized engines, and render clips from them without torch."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line. Exit codes: 0 done, 1 findings (lint, gate, a black or frozen clip), 2 bad input (one message, no traceback), 130 interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name or word that stdout's encoding lacks ends no command
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with Interruptible():
            code = cli.main(args=arguments, prog_name="reelquant", standalone_mode=False)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ReelquantError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:  # a disk, a permission: of the machine, and not to be mended by reading our code
        click.echo(f"Error: the system refused: {error}; mend that and run the command again", err=True)
        sys.exit(2)
    except MemoryError as error:
        click.echo(f"Error: not enough memory ({error}); choose a smaller size or fewer frames", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo(SAID, err=True)
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)
