"""The directory form of a bundle: regular files only, reached through real directories only."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgeclip import paths
from edgeclip.errors import BundleFormatError, BundleIntegrityError, BundlePathError

MAX_VISITED = 4096
"""Files and directories together. A bundle has at most 1,024 files."""


@dataclass(frozen=True)
class Folder:
    """A directory whose tree is checked. Contents are for the caller to verify."""

    path: Path
    sizes: dict[str, int]
    identity: tuple[int, int]
    """What tells the directory from one that takes its place: device and inode."""

    @classmethod
    def scan(cls, path: Path) -> Folder:
        """List the files below a directory; opens none.

        Raises:
            BundlePathError: a symlink, FIFO, device or socket, or a name that a bundle may not have.
            BundleFormatError: more files than a bundle may have.
            OSError: a directory cannot be listed.
        """
        identity = _identity(path)
        sizes: dict[str, int] = {}
        for name, status in _walk(path):
            if not stat.S_ISREG(status.st_mode):
                raise BundlePathError(f"{path / name}: {paths.kind(status.st_mode)}, not a regular file")
            sizes[name] = status.st_size
        return cls(path, sizes, identity)

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading.

        A parent that is swapped for a symlink after it was looked at could still be followed; what is then read must
        match the file's digest, so that nothing is learnt from it.

        Raises:
            BundlePathError: it is not a regular file, or not in real directories.
            BundleIntegrityError: another directory has taken the bundle's place.
            OSError: the file cannot be opened.
        """
        if _identity(self.path) != self.identity:
            raise BundleIntegrityError(f"{self.path}: replaced since it was opened", hint="open it again")
        parts = name.split("/")
        for end in range(1, len(parts)):
            parent = self.path.joinpath(*parts[:end])
            if not stat.S_ISDIR(mode := parent.lstat().st_mode):
                raise BundlePathError(f"{parent}: {paths.kind(mode)}, not a directory")
        return paths.open_regular(self.path / name)

    def intact(self, name: str, data: bytes) -> bool:
        """A directory has no checksums of its own."""
        return True


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _walk(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Everything below but directories, as name and status, without following symlinks."""
    pending = [""]
    visited = 0
    while pending:
        prefix = pending.pop()
        with os.scandir(root / prefix) as entries:
            for entry in entries:
                visited += 1
                if visited > MAX_VISITED:
                    raise BundleFormatError(f"{root}: more than {MAX_VISITED} files and directories")
                if entry.name in paths.IGNORED:
                    continue
                name = f"{prefix}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{name}/")
                else:
                    yield name, entry.stat(follow_symlinks=False)
