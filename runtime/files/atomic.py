"""Files and folders that appear whole or not at all: temporary name, fsync, rename."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelquant.runtime.errors import BadInput
from reelquant.runtime.files.hidden import OLD, hidden
from reelquant.runtime.files.replaceable import check_replaceable


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` (same suffix); on success it is synced and takes the name.

    On any failure, Ctrl-C included, the temporary file is removed and ``path`` is as it was.

    Raises:
        BadInput: the folder cannot be written, or the disk is full.
    """
    try:
        # The suffix is what FFmpeg chooses a format by; in the rest of a name it might read a protocol.
        with hidden(path.parent, "partial", path.suffix) as temporary:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
    except OSError as error:
        raise _explained(error, path) from error


def check_writable(folder: Path, what: str) -> None:
    """See that files can be made in ``folder``, which may have to be made first; ``what`` it is for begins a message.

    Raises:
        BadInput: they cannot.
    """
    try:
        there = folder.absolute()
        while not there.exists():
            there = there.parent
    except OSError as error:
        raise BadInput(f"{what} cannot be used: {error.strerror}; choose another place") from error
    if not there.is_dir():
        raise BadInput(f"{what} cannot be written: {there} is not a folder; choose another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise BadInput(f"{what} cannot be written: no permission in {there}; choose another place")


def check_free(path: Path, replace: bool = False) -> None:
    """See that a folder can be made at ``path``, before the work whose result it is.

    Raises:
        BadInput: it is a file, a link, a place where a disk is mounted or the folder that the user is in; or a folder that
            is not empty and not to be replaced, or that holds more than a bundle.
    """
    if path.is_symlink():
        raise BadInput(f"{path} is a link, and a new folder would take its place; name the folder that it points to")
    if not path.exists():
        return
    if not path.is_dir():
        raise BadInput(f"{path} is a file where a folder is to be made; choose another name")
    if os.path.ismount(path):  # which cannot be renamed, as with a container's volume
        raise BadInput(
            f"{path} is where a disk is mounted, and no folder can take its place; name one in it, {path / 'bundle'}"
        )
    if Path.cwd().is_relative_to(path.resolve()):
        raise BadInput(f"{path} is where this command runs, and a new folder would take its place; name one in it")
    if any(path.iterdir()):
        if not replace:
            raise BadInput(f"{path} exists and is not empty; choose another name, or --replace it")
        check_replaceable(path)


@contextmanager
def partial_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on success every file is synced and it takes the name.

    With ``replace``, an existing ``path`` is swapped out only after the new folder is complete.

    Raises:
        BadInput: ``path`` exists and is not to be replaced, cannot be written, or the disk is full.
    """
    check_free(path, replace)
    try:
        with hidden(path.parent, "partial") as place:
            folder, old = place / "new", place / OLD
            folder.mkdir()
            yield folder
            for entry in [*sorted(folder.rglob("*")), folder]:
                _sync(entry)
            if path.exists():
                old.mkdir()
                os.replace(path, old / path.name)
            os.replace(folder, path)
            _sync(path.parent)
    except OSError as error:
        raise _explained(error, path) from error


@contextmanager
def scratch_folder(beside: Path, prefix: str) -> Iterator[Path]:
    """Yield a new hidden folder beside ``beside``, so on the same disk, and remove it in the end, on Ctrl-C too.

    ``prefix`` says what for, in small letters.

    Raises:
        BadInput: that folder cannot be written, or the disk is full.
    """
    place = beside.absolute().parent
    try:
        with hidden(place, prefix) as folder:
            place = folder
            yield folder
    except OSError as error:
        raise _explained(error, place) from error


def _sync(path: Path) -> None:
    """Make a file's content or a folder's names last, where the file system knows how.

    CIFS and FUSE refuse for folders, some of FUSE for files; Windows opens no folder, and syncs only what may be written.
    """
    try:
        handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        unable = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)
        unlisted = (errno.EACCES, errno.EPERM)  # a folder that may be written and not read
        if error.errno not in unable and not (error.errno in unlisted and path.is_dir()):
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
