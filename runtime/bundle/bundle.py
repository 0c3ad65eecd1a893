"""A bundle on disk: open it, trust it only as far as its hashes hold, and load its graphs."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from reelquant.runtime.bundle import manifest as manifests
from reelquant.runtime.bundle.manifest import FileEntry, Manifest
from reelquant.runtime.errors import BundleError
from reelquant.runtime.files.atomic import partial_file

TOKENIZER = "tokenizer.json"
ENGINES, SCHEDULES = "engines", "schedules"


@dataclass(frozen=True)
class Bundle:
    """A folder whose manifest has been read and whose files are all there with the right sizes."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read the manifest and check every file's presence and size (hashes are checked when a file is used).

        Raises:
            BundleError: not a bundle, or a file is missing or truncated.
        """
        path = Path(path)
        where = path / manifests.FILE
        if not path.is_dir():
            raise BundleError(f"{path} is not a bundle: no such folder; make one with: reelquant export CHECKPOINT OUT")
        if not where.is_file():
            raise BundleError(f"{path} is not a bundle: it has no {manifests.FILE}; reelquant export makes one")
        try:
            text = where.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"cannot read {where}: {error}; copy the bundle again or export it again") from error
        bundle = cls(path, Manifest.from_json(text, where))
        for name, entry in bundle.manifest.files.items():
            bundle._check_size(name, entry)
        return bundle

    @property
    def digest(self) -> str:
        """sha256 over the names and hashes of all files but engines and schedules: the same graphs and weights give the same digest."""
        apart = (f"{ENGINES}/", f"{SCHEDULES}/")
        files = {name: entry for name, entry in self.manifest.files.items() if not name.startswith(apart)}
        lines = sorted(f"{name} {entry.sha256}\n" for name, entry in files.items())
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def component_digest(self, component: str) -> str:
        """sha256 over the names and hashes of one component's files; bundles of other precisions may share it."""
        names = sorted(name for name in self.manifest.files if name.startswith(f"{component}/"))
        lines = (f"{name} {self.manifest.files[name].sha256}\n" for name in names)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def graph(self, component: str, graph: str) -> Path:
        """The path of one graph.

        Raises:
            BundleError: this bundle has no such component or graph.
        """
        try:
            return self.path / self.manifest.components[component].graphs[graph]
        except KeyError:
            raise BundleError(f"{self.path} has no graph {component}/{graph}; export it again") from None

    def check_hashes(self, wanted: Callable[[str], bool] = lambda _: True) -> int:
        """Compare the wanted files with the manifest and return how many there were.

        Raises:
            BundleError: a file is missing, truncated or changed; the message names it.
        """
        names = [name for name in sorted(self.manifest.files) if wanted(name)]
        for name in names:
            entry = self.manifest.files[name]
            self._check_size(name, entry)
            if hash_file(self.path / name) != entry.sha256:
                raise BundleError(
                    f"{self.path / name} was changed after export: its sha256 differs from the manifest; copy it again"
                )
        return len(names)

    def copy_files(self, folder: Path, wanted: Callable[[str], bool] = lambda _: True) -> None:
        """Copy the wanted files, not the manifest, into ``folder`` under their names."""
        for name in filter(wanted, self.manifest.files):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.path / name, folder / name)

    def verify(self) -> int:
        """Check every hash, and that nothing else lies in the folder; return the number of files.

        Raises:
            BundleError: a file is missing, truncated, changed, a link, or not listed.
        """
        listed = {*self.manifest.files, manifests.FILE, manifests.SIGNATURE}
        for folder, folders, files in os.walk(self.path):
            for name in [*files, *(f for f in folders if (Path(folder) / f).is_symlink())]:
                found = (Path(folder) / name).relative_to(self.path).as_posix()
                if found not in listed:
                    raise BundleError(f"{self.path / found} is not in the manifest; remove it or export again")
        return self.check_hashes()

    def _check_size(self, name: str, entry: FileEntry) -> None:
        file = self.path / name
        if file.is_symlink() or not file.is_file():
            raise BundleError(f"{file} is missing (or is a link); copy the bundle again or export it again")
        size = file.stat().st_size
        if size != entry.size:
            raise BundleError(
                f"{file} has {size} bytes where {entry.size} are expected: truncated or changed; copy it again"
            )


def hash_file(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def list_files(folder: Path, wanted: Callable[[str], bool] = lambda _: True) -> dict[str, FileEntry]:
    """The wanted files under ``folder``, never the manifest and its signature, with size and sha256."""
    files = {
        file.relative_to(folder).as_posix(): file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in (manifests.FILE, manifests.SIGNATURE)
    }
    return {name: FileEntry(file.stat().st_size, hash_file(file)) for name, file in files.items() if wanted(name)}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest`` into ``folder``; the last thing that is written, since a folder without one is no bundle.

    A signature of the manifest that was there is removed: it would vouch for what it has not seen.
    """
    with partial_file(folder / manifests.FILE) as temporary:
        temporary.write_text(manifest.to_json(), encoding="utf-8")
        (folder / manifests.SIGNATURE).unlink(missing_ok=True)
