"""Hidden places for what is not whole yet: under names that nobody else has, and swept where a killed process left them.

A process holds a lock on each of its places. One that nobody holds is nobody's any more, provided that it was made since
this machine was started and through this very mount: only then would a lock on it be seen here. All others stay.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

OLD = "old"  # in a place: what was taken from beside it, to be brought back where nothing has its name
_BOOT = Path("/proc/sys/kernel/random/boot_id")

# The places of this process that are not removed yet, each with the handle that holds the lock.
_unfinished: dict[Path, int | None] = {}


@contextmanager
def hidden(parent: Path, kind: str, suffix: str | None = None) -> Iterator[Path]:
    """Yield a new, locked folder in ``parent``, or with a ``suffix`` an empty file, and remove it in the end.

    ``kind`` says in the name what it is for, in small letters.

    Raises:
        OSError: it cannot be made.
    """
    parent.mkdir(parents=True, exist_ok=True)
    origin = _origin(parent)
    _sweep(parent, origin)
    with ExitStack() as stack:
        while True:
            path = parent / f".reelquant-{kind}-{origin or 'x'}-{secrets.token_hex(8)}{suffix or ''}"
            _unfinished[path] = None
            stack.callback(_end, path)
            if suffix is None:
                path.mkdir(mode=0o700)
            else:
                path.touch(exist_ok=False)
            try:
                _unfinished[path] = _lock(path)
            except (BlockingIOError, FileNotFoundError):
                continue  # another process swept it before it was locked
            break
        yield path


def remove_unfinished() -> None:
    """Remove every hidden place of this process; for a process that is about to end at once."""
    for path in list(_unfinished):
        with suppress(OSError):
            _clear(path)


def _end(path: Path) -> None:
    try:
        _clear(path)
    finally:
        lock = _unfinished.pop(path)
        if lock is not None:
            os.close(lock)


def _clear(place: Path) -> None:
    """Remove ``place``, once what it took from beside it is back or has a successor."""
    for old in place.glob(f"{OLD}/*"):
        before = place.with_name(old.name)
        if not os.path.lexists(before):
            os.replace(old, before)
    if not place.is_dir():
        with suppress(OSError):  # such as a parent that is a file: the first error is the one to report
            place.unlink(missing_ok=True)
        return
    try:
        shutil.rmtree(place, ignore_errors=True)
    except BaseException:  # a Ctrl-C in between: first be done with this
        shutil.rmtree(place, ignore_errors=True)
        raise


def _sweep(parent: Path, origin: str | None) -> None:
    if origin is None:
        return
    ours = re.compile(rf"\.reelquant-[a-z]+-{origin}-[0-9a-f]{{16}}(?:\.\w+)?")
    with suppress(OSError):  # a folder that may be written and not listed
        for path in [parent / name for name in os.listdir(parent) if ours.fullmatch(name)]:
            with suppress(OSError):
                lock = _lock(path)
                if lock is not None:
                    try:
                        _clear(path)
                    finally:
                        os.close(lock)


def _origin(parent: Path) -> str | None:
    """What two processes have in common that see each other's locks in ``parent``: a start of a machine, and a mount.

    None where the system does not say when it was started.
    """
    try:
        started = _BOOT.read_text("ascii").strip()
    except OSError:
        return None
    return hashlib.sha256(f"{started} {parent.stat().st_dev}".encode()).hexdigest()[:12]


def _lock(path: Path) -> int | None:
    """A handle by which this process alone holds ``path``; None where the system or the file system has no such locks.

    Raises:
        BlockingIOError: another holds it.
        FileNotFoundError: it is gone.
        OSError: it cannot be opened, or is a link.
    """
    try:
        import fcntl  # which Windows lacks
    except ImportError:
        return None
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.lstat(path)  # no name is used twice, so what is there is what is locked
    except OSError as error:
        os.close(handle)
        if isinstance(error, (BlockingIOError, FileNotFoundError)):
            raise
        return None
    return handle
