from __future__ import annotations

import errno
import os
import stat
import threading
import time
from pathlib import Path

import pytest

from reelquant.runtime.errors import BadInput
from reelquant.runtime.files.atomic import partial_file, partial_folder, scratch_folder

RANGES = '{"version": 1, "digest": "", "provenance": {}}'  # what may be replaced
INTERRUPTIONS = [ValueError("a bug"), KeyboardInterrupt(), SystemExit(1)]


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "clip.mp4"
    with partial_file(path) as temporary:
        assert temporary.suffix == ".mp4" and temporary.parent == path.parent
        temporary.write_bytes(b"half")
        assert not path.exists()
    assert path.read_bytes() == b"half" and names(tmp_path) == ["new", "new/clip.mp4"]


@pytest.mark.parametrize("error", INTERRUPTIONS, ids=repr)
@pytest.mark.parametrize("old", [None, b"old"])
def test_interrupted_file_leaves_what_was_there(tmp_path: Path, error: BaseException, old: bytes | None) -> None:
    path = tmp_path / "clip.mp4"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(type(error)) as caught, partial_file(path) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert caught.value is error
    assert names(tmp_path) == ([] if old is None else ["clip.mp4"])
    assert old is None or path.read_bytes() == old


def test_old_file_stays_until_the_new_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")
    with partial_file(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and names(tmp_path) == ["clip.mp4"]


def test_nothing_takes_the_name_before_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, replace = os.fsync, os.replace

    def noted_sync(handle: int) -> None:
        events.append("sync")
        sync(handle)

    def noted_replace(source: Path, target: Path) -> None:
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    with partial_file(tmp_path / "x.bin") as temporary:
        temporary.write_bytes(b"x")
    assert events == ["sync", "rename", "sync"]
    events.clear()
    with partial_folder(tmp_path / "bundle") as folder:
        (folder / "a").write_bytes(b"a")
        (folder / "b").write_bytes(b"b")
    assert events == ["sync", "sync", "sync", "rename", "sync"]


def test_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    said = r"the disk is full: .*/{} was not written; free"
    with pytest.raises(BadInput, match=said.format("clip.mp4")), partial_file(tmp_path / "clip.mp4") as temporary:
        temporary.write_bytes(b"half")
        Path("/dev/full").write_bytes(b"x")
    with pytest.raises(BadInput, match=said.format("bundle")), partial_folder(tmp_path / "bundle") as folder:
        (folder / "weights").write_bytes(b"half")
        Path("/dev/full").write_bytes(b"x")
    assert names(tmp_path) == []


def test_full_disk_at_the_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "clip.mp4").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match="the disk is full"), partial_file(tmp_path / "clip.mp4") as temporary:
        temporary.write_bytes(b"new")
    assert (tmp_path / "clip.mp4").read_bytes() == b"old" and names(tmp_path) == ["clip.mp4"]


def test_read_only_place_is_said(tmp_path: Path) -> None:
    said = "cannot write .*clip.mp4: Read-only file system; choose"
    with pytest.raises(BadInput, match=said), partial_file(tmp_path / "clip.mp4"):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_other_os_errors_stay_themselves(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output error"), partial_file(tmp_path / "clip.mp4"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert names(tmp_path) == []


def test_folder_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "bundle"
    with partial_folder(path) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "weights").write_bytes(b"w")
        assert not path.exists()
    assert names(tmp_path) == ["deep", "deep/bundle", "deep/bundle/sub", "deep/bundle/sub/weights"]


@pytest.mark.parametrize("error", INTERRUPTIONS, ids=repr)
@pytest.mark.parametrize("replace", [False, True])
def test_interrupted_folder_leaves_what_was_there(tmp_path: Path, error: BaseException, replace: bool) -> None:
    path = tmp_path / "bundle"
    if replace:
        path.mkdir()
        (path / "ranges.json").write_text(RANGES)
    before = names(tmp_path)
    with pytest.raises(type(error)), partial_folder(path, replace=replace) as folder:
        (folder / "new").write_bytes(b"half")
        raise error
    assert names(tmp_path) == before


def test_replaced_folder_has_only_the_new(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "ranges.json").write_text(RANGES)
    with partial_folder(path, replace=True) as folder:
        (folder / "new").write_bytes(b"new")
        assert names(path) == ["ranges.json"]
    assert names(tmp_path) == ["bundle", "bundle/new"]


def test_old_folder_comes_back_when_the_swap_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "ranges.json").write_text(RANGES)
    replace = os.replace

    def failing(source: Path, target: Path) -> None:
        if source.name == "new":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="Input/output"), partial_folder(path, replace=True) as folder:
        (folder / "new").write_bytes(b"new")
    assert names(tmp_path) == ["bundle", "bundle/ranges.json"]


def test_folder_in_use_is_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with partial_folder(tmp_path / "bundle") as folder:  # an empty one is nobody's
        (folder / "new").write_bytes(b"new")
    for name, words in {"bundle": "exists and is not empty", "bundle/new": "is a file where a folder"}.items():
        with pytest.raises(BadInput, match=f"{words}.*; choose another name"), partial_folder(tmp_path / name):
            pytest.fail("work was started for a place that cannot be used")
    assert names(tmp_path) == ["bundle", "bundle/new"]


def test_places_that_no_folder_can_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are said before the work, not after it."""
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    monkeypatch.chdir(tmp_path / "there")
    refused = {"../link": "is a link", "../dangling": "is a link", "/": "is where a disk is mounted"}
    refused |= {"/dev/shm": "name one in it, /dev/shm/bundle"} if Path("/dev/shm").is_mount() else {}
    refused |= {".": "is where this command runs", "..": "is where this command runs"}
    for name, words in refused.items():
        for replace in (False, True):
            with pytest.raises(BadInput, match=words), partial_folder(Path(name), replace):
                pytest.fail("work was started for a place that cannot be used")
    with partial_folder(Path("bundle")) as folder:
        (folder / "new").touch()
    assert names(tmp_path) == ["dangling", "link", "there", "there/bundle", "there/bundle/new"]


@pytest.mark.parametrize("error", [*INTERRUPTIONS, None], ids=repr)
def test_a_scratch_folder_lies_beside_and_goes(tmp_path: Path, error: BaseException | None) -> None:
    seen = []
    try:
        with scratch_folder(tmp_path / "deep" / "bundle", "work") as folder:
            (folder / "half").write_bytes(b"half")
            seen.append(folder)
            if error:
                raise error
    except (ValueError, KeyboardInterrupt, SystemExit) as caught:
        assert caught is error
    assert (
        seen[0].parent == tmp_path / "deep"
        and seen[0].name.startswith(".reelquant-work-")
        and names(tmp_path) == ["deep"]
    )


def test_a_scratch_folder_on_a_full_disk(tmp_path: Path) -> None:
    with (
        pytest.raises(BadInput, match=r"the disk is full: .*/\.reelquant-work-.* was not written"),
        scratch_folder(tmp_path / "x", "work"),
    ):
        Path("/dev/full").write_bytes(b"x")
    (tmp_path / "file").touch()
    said = "cannot write .*/file: (File exists|Not a directory)"
    with pytest.raises(BadInput, match=said), scratch_folder(tmp_path / "file" / "bundle", "work"):
        pytest.fail("there is no place for it")
    assert names(tmp_path) == ["file"]


def test_writers_with_one_process_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers that share a disk have the same process ids."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for _ in range(20):
                with partial_file(tmp_path / "clip.npy") as temporary:
                    temporary.write_text(str(number))
                    time.sleep(0.0005)
        except BaseException as error:  # noqa: BLE001 - whatever one of them says is what the test is about
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and [path.name for path in tmp_path.iterdir()] == ["clip.npy"]
    with partial_folder(tmp_path / "bundle") as one, partial_folder(tmp_path / "bundle") as other:
        assert one != other


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
@pytest.mark.parametrize("files", [False, True])
def test_file_systems_that_cannot_sync(
    number: int, files: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CIFS and FUSE; what was written is whole all the same."""
    sync = os.fsync

    def fsync(handle: int) -> None:
        if files or stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with partial_folder(tmp_path / "bundle") as folder, partial_file(folder / "deep" / "a.npy") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "bundle" / "deep" / "a.npy").read_text() == "x"


def test_a_folder_that_may_be_written_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so that the system's refusal has to be played."""
    opened = os.open

    def refusing(path: Path, *options: int) -> int:
        if Path(path) == tmp_path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, *options)

    monkeypatch.setattr(os, "open", refusing)
    with partial_file(tmp_path / "clip.mp4") as temporary:
        temporary.write_text("x")
    assert names(tmp_path) == ["clip.mp4"]


def test_a_disk_that_fails_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output"), partial_file(tmp_path / "clip.mp4") as temporary:
        temporary.write_text("x")
    assert names(tmp_path) == []
