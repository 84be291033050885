"""Files of pictures in a folder, and what shows that one has changed."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edgeclip.errors import InputError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})
"""What is taken from a folder. A file that is named itself may have any name: images are told apart by content."""
_PIECE_BYTES = 1 << 20


class Stamp(msgspec.Struct, frozen=True):
    """What of a file shows that it changed."""

    size: int
    mtime_ns: int


def walk(folder: Path) -> Iterator[str]:
    """Paths of the folder's pictures and those below it, sorted folder by folder. Links to folders are not followed."""
    for directory, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            if Path(name).suffix.lower() in SUFFIXES:
                yield str(Path(directory, name))


def scan(folder: Path) -> dict[str, Stamp]:
    """The folder's pictures by their paths inside it.

    Raises:
        InputError: it does not exist, or has no picture.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    stamps = ((os.path.relpath(path, folder), stamp_of(path)) for path in walk(folder))
    found = {path: stamp for path, stamp in stamps if stamp is not None}
    if not found:
        raise InputError(f"no picture in {folder}", hint=f"their names end with {', '.join(sorted(SUFFIXES))}")
    return found


def stamp_of(path: str) -> Stamp | None:
    """None where there is no plain file."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return Stamp(status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def digest_of(path: str, stamp: Stamp) -> bytes:
    """sha256 of a file's content; empty where it cannot be read, or is no more what the stamp says."""
    digest = hashlib.sha256()
    if stamp_of(path) != stamp:
        return b""
    try:
        with Path(path).open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
    except OSError:
        return b""
    return digest.digest() if stamp_of(path) == stamp else b""
