"""Run the command line in this process, and look at all that a user would see of it."""

from __future__ import annotations

import hashlib
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from reelquant.runtime.cli import main


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> Ran:
    """``reelquant ARGUMENTS``; what native libraries print counts too."""
    capfd.readouterr()
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
    except KeyboardInterrupt:
        pytest.fail("a Ctrl-C came through")
    finally:
        signal.signal(signal.SIGTERM, before)
    out, err = capfd.readouterr()
    assert isinstance(left.value.code, int)
    return Ran(left.value.code, out, err)


def refused(capfd: pytest.CaptureFixture[str], place: Path, *arguments: object) -> str:
    """Return the message of a command that ends with 2, says one thing on stderr and changes nothing in ``place``."""
    before = contents(place)
    ran = run(capfd, *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert contents(place) == before
    return only_message(ran.err)


def only_message(err: str) -> str:
    """The text after "Error: " when stderr has that and nothing else (but click's usage lines)."""
    before, found, message = err.partition("Error: ")
    assert found and "Error: " not in message and "Traceback" not in err, err
    assert not before or before.startswith("Usage: reelquant"), err
    assert len(message.strip().splitlines()) == 1, err
    return message.strip()


def contents(folder: Path) -> dict[str, str]:
    """Every name under ``folder``, with a digest of what it holds."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }
