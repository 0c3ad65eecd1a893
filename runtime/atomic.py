"""Files and folders that appear whole or not at all: temporary name, fsync, rename."""

from __future__ import annotations

import errno
import io
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.errors import BadInput
from reelquant.runtime.replaceable import check_replaceable

# What this process has begun and not finished; taken away when it is told to leave in the middle of a long step.
_unfinished: set[Path] = set()


def remove_unfinished() -> None:
    """Remove every partial file and folder of this process; for a process that is about to end at once."""
    for path in list(_unfinished):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink(missing_ok=True)


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` (same suffix); on success it is synced and takes the name.

    On any failure, Ctrl-C included, the temporary file is removed and ``path`` is as it was.

    Raises:
        BadInput: the folder cannot be written, or the disk is full.
    """
    # A name that nobody else chooses, in another container or on another machine either, where process ids are the same;
    # and without ``path``'s own, in which FFmpeg might read a protocol.
    temporary = path.with_name(f".{secrets.token_hex(8)}.partial{path.suffix}")
    _unfinished.add(temporary)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        with suppress(OSError):  # such as a parent that is a file: the first error is the one to report
            temporary.unlink(missing_ok=True)
        _unfinished.discard(temporary)


def check_free(path: Path, replace: bool = False) -> None:
    """See that a folder can be made at ``path``, before the work whose result it is.

    Raises:
        BadInput: it is a file, or a folder that is not empty and not to be replaced, or that holds more than a bundle.
    """
    if path.exists() and not path.is_dir():
        raise BadInput(f"{path} is a file where a folder is to be made; choose another name")
    if path.exists() and not replace and any(path.iterdir()):
        raise BadInput(f"{path} exists and is not empty; choose another name, or --replace it")
    if replace and path.exists() and any(path.iterdir()):
        check_replaceable(path)


@contextmanager
def partial_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling folder of ``path``; on success every file is synced and it takes the name.

    With ``replace``, an existing ``path`` is swapped out only after the new folder is complete.

    Raises:
        BadInput: ``path`` exists and is not to be replaced, cannot be written, or the disk is full.
    """
    check_free(path, replace)
    token = secrets.token_hex(8)  # as in partial_file
    temporary, old = (path.with_name(f".{path.name[:100]}.{token}.{what}") for what in ("partial", "old"))
    _unfinished.add(temporary)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        for entry in sorted(temporary.rglob("*")):
            (_sync_folder if entry.is_dir() else _sync)(entry)
        _sync_folder(temporary)
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        try:
            _remove(old)
        finally:
            _remove(temporary)
            _unfinished.discard(temporary)


@contextmanager
def scratch_folder(beside: Path, prefix: str) -> Iterator[Path]:
    """Yield a new hidden folder beside ``beside``, so on the same disk, and remove it in the end, on Ctrl-C too.

    Raises:
        BadInput: that folder cannot be written, or the disk is full.
    """
    parent = beside.absolute().parent
    folder = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{prefix}-", dir=parent))
        _unfinished.add(folder)
        yield folder
    except OSError as error:
        raise _explained(error, folder or parent) from error
    finally:
        if folder is not None:
            _remove(folder)
            _unfinished.discard(folder)


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:  # a Ctrl-C in between: first be done with this
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(path: Path) -> None:
    """Make a folder's names last, where its file system knows how: CIFS and FUSE refuse, and Windows opens no folder."""
    try:
        _sync(path)
    except OSError as error:
        unable = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)
        if error.errno not in unable and os.name != "nt":
            raise


def _explained(error: OSError, path: Path) -> Exception:
    if error.errno == errno.ENOSPC:
        return BadInput(f"the disk is full: {path} was not written; free some space and run the command again")
    refused = (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EPERM, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG)
    if error.errno in refused:
        return BadInput(f"cannot write {path}: {error.strerror}; choose another place")
    return error


def npy_bytes(array: NDArray[Any]) -> memoryview:
    """An ``.npy`` file's bytes, made in memory: writing to a file itself, numpy reports a full disk without its errno."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getbuffer()


def link_or_copy(source: Path, target: Path) -> None:
    """Give ``source`` a second name where the file system can, else copy it: for gigabytes that are never edited."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        with partial_file(target) as temporary:
            shutil.copyfile(source, temporary)
