"""Tars of samples, plain or gzipped: a sample's files lie side by side and share their key, what precedes the dot."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from edgeclip.errors import DataError

T = TypeVar("T")
SUFFIXES = (".tar", ".tar.gz", ".tgz")
_GZIP = b"\x1f\x8b"
_DAMAGE = (OSError, EOFError, zlib.error, tarfile.TarError)


@dataclass(frozen=True, slots=True)
class Piece:
    """Where a file's bytes lie in a tar, counted after decompression."""

    tar: Path
    offset: int
    size: int


def read_tar(path: Path) -> Iterator[dict[str, bytes]]:
    """The files of each sample by suffix; under the empty suffix its key.

    Raises:
        DataError: the tar is missing, cut or damaged.
    """
    with open_tar(path) as tar:
        for key, files in _samples(tar, lambda member: _content(tar, member, path)):
            yield {"": key.encode(errors="replace"), **files}


def index_tar(path: Path) -> Iterator[tuple[str, dict[str, Piece]]]:
    """Each sample's key, and where its files lie by suffix. Reads headers alone, except through gzip.

    Raises:
        DataError: as `read_tar`.
    """
    with open_tar(path) as tar:
        yield from _samples(tar, lambda member: Piece(path, member.offset_data, member.size))


def count_tar(path: Path) -> int:
    """How many different keys there are.

    Raises:
        DataError: as `read_tar`.
    """
    with open_tar(path) as tar:
        return len({_split(member.name)[0] for member in _members(tar)})


class Reader:
    """Reads pieces; cheap where those of one tar come in the order in which they lie. Not for several threads."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file: BinaryIO | None = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def read(self, piece: Piece) -> bytes:
        """
        Raises:
            DataError: the tar is gone, or is not what it was when it was listed.
        """
        try:
            file = self._opened(piece.tar)
            file.seek(piece.offset)
            data = file.read(piece.size)
        except _DAMAGE as exc:
            raise _torn(piece.tar, exc) from exc
        if len(data) < piece.size:
            raise _torn(piece.tar, "shorter than when it was listed")
        return data

    def close(self) -> None:
        """Close the tar that was read last."""
        if self._file is not None:
            self._file.close()
        self._path = self._file = None

    def _opened(self, path: Path) -> BinaryIO:
        if self._file is None or path != self._path:
            self.close()
            opened = gzip.open(path) if _is_gzip(path) else path.open("rb")  # noqa: SIM115 - closed with the reader
            self._file, self._path = cast("BinaryIO", opened), path
        return self._file


@contextmanager
def open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """
    Raises:
        DataError: it cannot be read.
    """
    try:
        tar = tarfile.open(path, "r:gz" if _is_gzip(path) else "r:")  # noqa: SIM115 - opening alone is guarded
    except _DAMAGE as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else exc
        raise DataError(f"{path}: cannot be read: {reason}") from exc
    with tar:
        yield tar


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_GZIP)) == _GZIP


def _samples(tar: tarfile.TarFile, take: Callable[[tarfile.TarInfo], T]) -> Iterator[tuple[str, dict[str, T]]]:
    """Neighbours with one key, each with what is taken of its files by suffix."""
    key, taken = "", dict[str, T]()
    for member in _members(tar):
        found, suffix = _split(member.name)
        if taken and found != key:
            yield key, taken
            taken = {}
        key = found
        taken[suffix] = take(member)  # at once: a compressed tar cannot be read backwards
    if taken:
        yield key, taken


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The regular files in order, none of them kept.

    Raises:
        DataError: the tar is cut or damaged; Python's tarfile takes one that ends between two files for a whole one.
    """
    try:
        while (member := tar.next()) is not None:
            if member.isfile():
                yield member
            tar.members = []  # type: ignore[attr-defined]  # it would keep a record of every file
        whole = _ends_here(tar)
    except _DAMAGE as exc:
        raise _torn(tar.name, exc) from exc
    if not whole:
        raise _torn(tar.name, "ends without a tar's end mark")


def _ends_here(tar: tarfile.TarFile) -> bool:
    """Whether an empty block stands where no further member was found."""
    file: Any = tar.fileobj
    file.seek(tar.offset)
    return bool(file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE))


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bytes:
    try:
        file = tar.extractfile(member)
        return file.read() if file else b""
    except _DAMAGE as exc:
        raise _torn(path, exc) from exc


def _torn(path: Any, reason: object) -> DataError:
    return DataError(f"{path}: cannot be read to its end: {reason}", hint="get it again")


def _split(name: str) -> tuple[str, str]:
    """Key and suffix: the suffix begins at the first dot of the file's name."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()
