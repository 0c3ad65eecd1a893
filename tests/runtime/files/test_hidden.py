"""What a killed process left is swept, and what a living one, another mount or another machine holds is not."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reelquant.runtime.files import hidden as hidden_places
from reelquant.runtime.files.atomic import partial_file, partial_folder, scratch_folder
from reelquant.runtime.files.hidden import hidden

AT_WORK = """
import sys, time
from pathlib import Path
from reelquant.runtime.files.atomic import partial_file, partial_folder, scratch_folder
place = Path(sys.argv[1])
with partial_folder(place / "bundle") as folder, scratch_folder(place / "x", "work") as scratch:
    with partial_file(place / "clip.mp4") as clip:
        for path in (folder / "a", scratch / "b", clip):
            path.write_text("half")
        print("begun", flush=True)
        time.sleep(600)
"""


@contextmanager
def at_work(place: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", AT_WORK, str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "begun\n"
            yield process
        finally:
            process.kill()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(place: Path) -> None:
    with partial_file(place / "other.mp4") as temporary:
        temporary.write_text("x")


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    with at_work(tmp_path) as process:
        left = names(tmp_path)
        assert len(left) == 3 and all(name.startswith(".reelquant-") for name in left)
        write(tmp_path)
        with partial_folder(tmp_path / "bundle2"), scratch_folder(tmp_path / "y", "work"):
            pass
        assert names(tmp_path) == sorted([*left, "bundle2", "other.mp4"]), "a living process lost its work"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(names(tmp_path)) == 5
    write(tmp_path)
    assert names(tmp_path) == ["bundle2", "other.mp4"]


@pytest.mark.parametrize("what", ["another start or machine", "another mount", "no locks", "no fcntl", "no boot id"])
def test_what_may_be_alive_elsewhere_stays(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with at_work(tmp_path):
        pass
    left = names(tmp_path)
    if what == "another start or machine":
        (tmp_path / "boot_id").write_text("another")
        monkeypatch.setattr(hidden_places, "_BOOT", tmp_path / "boot_id")
    elif what == "another mount":
        real = os.stat(tmp_path)
        other = os.stat_result((*real[:2], real.st_dev + 1, *real[3:]))
        monkeypatch.setattr(Path, "stat", lambda self, **_: other if self == tmp_path else os.stat(self))
    elif what == "no locks":
        monkeypatch.setattr(fcntl, "flock", lambda handle, how: (_ for _ in ()).throw(OSError(95, "Not supported")))
    elif what == "no fcntl":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:
        monkeypatch.setattr(hidden_places, "_BOOT", tmp_path / "none")
    write(tmp_path)
    assert set(names(tmp_path)) > set(left) and (tmp_path / "other.mp4").read_text() == "x"


def test_nothing_but_ours_is_swept(tmp_path: Path) -> None:
    with hidden(tmp_path, "work") as place:
        start = place.name[:-16]
    (tmp_path / "elsewhere" / "old").mkdir(parents=True)
    (tmp_path / "elsewhere" / "old" / "mine").touch()
    (tmp_path / f"{start}{'0' * 16}").symlink_to(tmp_path / "elsewhere")
    for name in (f"{start}mine", f"x{start}{'0' * 16}", ".reelquant-mine", ".7.partial.mp4"):
        (tmp_path / name).touch()
    before = names(tmp_path)
    write(tmp_path)
    assert names(tmp_path) == sorted([*before, "other.mp4"]) and names(tmp_path / "elsewhere" / "old") == ["mine"]


@pytest.mark.parametrize("successor", [False, True])
def test_a_bundle_that_was_being_replaced_comes_back(successor: bool, tmp_path: Path) -> None:
    """Killed between the two renames, or just after them."""
    with hidden(tmp_path, "partial") as place:
        name = place.name
    (tmp_path / name / "old" / "bundle").mkdir(parents=True)
    (tmp_path / name / "old" / "bundle" / "manifest.json").write_text("old")
    if successor:
        (tmp_path / "bundle").mkdir()
        (tmp_path / "bundle" / "manifest.json").write_text("new")
    write(tmp_path)
    assert names(tmp_path) == ["bundle", "other.mp4"]
    assert (tmp_path / "bundle" / "manifest.json").read_text() == ("new" if successor else "old")


def test_a_place_that_is_swept_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, tried = hidden_places._lock, []

    def late(path: Path) -> int | None:
        tried.append(path)
        if len(tried) == 1:
            path.rmdir()
        return lock(path)

    monkeypatch.setattr(hidden_places, "_lock", late)
    with hidden(tmp_path, "work") as place:
        assert place.is_dir() and place == tried[1] != tried[0]
    assert names(tmp_path) == []


def test_many_that_make_and_sweep_at_once(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(50):
                with scratch_folder(tmp_path / "x", "work") as folder:
                    (folder / "a").write_text(str(number))
                    assert (folder / "a").read_text() == str(number)
        except BaseException as error:  # noqa: BLE001 - whatever one of them says is what the test is about
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and names(tmp_path) == []
