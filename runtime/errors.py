"""The errors a user can do something about. Each says what was wrong, where, what is allowed, and what to do next."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class ReelquantError(Exception):
    """Base of every error that is the user's to mend; the command line prints its text and exits with 2."""

    exit_code = 2


class BadInput(ReelquantError):
    """A prompt, image, size or option that cannot be used."""


class BundleError(ReelquantError):
    """A bundle (or checkpoint) that is missing something, damaged, or made by another version."""


class MissingExtra(ReelquantError):
    """An optional package is needed and not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} is not installed; install it with: pip install 'reelquant[{extra}]'")


def imported(package: str, extra: str) -> Any:
    """The package, imported.

    Raises:
        MissingExtra: it is not installed; the message names the extra that brings it.
        EngineError: it is installed and does not load.
    """
    try:
        return import_module(package)
    except Exception as error:  # a broken package may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            raise MissingExtra(package, extra) from error
        why = " ".join(str(error).split()) or type(error).__name__
        raise EngineError(
            f"{package} is installed and does not load ({why:.300}); install it again: pip install --force-reinstall "
            f"'reelquant[{extra}]'"
        ) from error


class EngineError(ReelquantError):
    """An engine gave up while it ran a graph: no memory, or inputs that do not fit the graph."""


class Cancelled(ReelquantError):
    """Whoever followed a clip's making (``on_step``) stopped it; to be raised by them."""


class AccuracyError(ReelquantError):
    """A graph or clip failed its numeric check: it ran, but its result cannot be trusted."""
