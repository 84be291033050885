"""The file of an index of photographs: an SQLite database, every row of which carries a checksum.

    facts       one row of JSON: what the index is of, and how many rows the tables have
    pictures    id, path, size, mtime_ns, digest, reason; an id is never used twice
    embeddings  id, vector; for pictures that could be read

A transaction is there whole or not at all, whatever happens to the process. What SQLite does not notice, a changed byte
or a row that is missing, the checksums and the counts do.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeclip.backends.base import Embeddings
from edgeclip.errors import EdgeClipError, PhotoIndexError, ResourceError, UsageError
from edgeclip.picturefiles import Stamp

FORMAT = 1
"""Of the tables and what is in them; files of another are refused."""
APPLICATION_ID = 0x45434950
"""What SQLite keeps for programs to know their files by; "ECIP"."""
ANEW = "make it anew with --reindex (reindex=True)"
WAIT_S = 30.0
PAGE_BYTES = 16_384
"""Of SQLite's default, 4,096, rows of 512 dimensions would leave a half empty."""
Ids = NDArray[np.int64]
_MAGIC = b"SQLite format 3\0"
_ID_AT = 68
_FETCHED = 500
"""Rows that one query names; SQLite has a limit."""
_TABLES = (
    "CREATE TABLE facts (id INTEGER PRIMARY KEY, json BLOB NOT NULL, checksum INTEGER NOT NULL)",
    "CREATE TABLE pictures (id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE, size INTEGER NOT NULL, "
    "mtime_ns INTEGER NOT NULL, digest BLOB NOT NULL, reason TEXT NOT NULL, checksum INTEGER NOT NULL)",
    "CREATE TABLE embeddings (id INTEGER PRIMARY KEY, vector BLOB NOT NULL, checksum INTEGER NOT NULL)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {FORMAT}",
)


class Maker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What decides an embedding, to within what parity allows: engines and their versions do not."""

    model: str
    bundle: str
    """Digest."""
    precision: str
    compute: str
    artifact: str
    """The image tower's, where it was rounded to integers; empty where all targets hold the same weights."""
    dim: int


class GraphStamp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which graph of neighbours belongs to the index."""

    sha256: str
    last_id: int
    """Pictures with larger ids are not in it."""
    count: int


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the index is of."""

    folder: str
    made_by: Maker
    pictures: int = 0
    embeddings: int = 0
    next_id: int = 1
    graph: GraphStamp | None = None


class Picture(msgspec.Struct, frozen=True):
    """One file of the folder."""

    path: str
    """Relative to the folder."""
    stamp: Stamp
    digest: bytes
    """sha256 of the content; empty where that is not known."""
    reason: str = ""
    """Why it cannot be read; empty where it can."""


@dataclass(frozen=True)
class Contents:
    """All of an index, of one moment."""

    facts: Facts
    pictures: dict[int, Picture]
    ids: Ids
    """int64 [N], of the rows of `embeddings`."""
    embeddings: Embeddings
    """float32 [N, D]; none where they were not asked for."""


class IndexFile:
    """An open index. Made by `open_file`."""

    def __init__(self, path: Path | None, database: sqlite3.Connection) -> None:
        self.path = path
        self._name = str(path) if path is not None else "the index"
        self._database = database

    def facts(self) -> Facts:
        """
        Raises:
            PhotoIndexError: they are damaged; as all methods.
        """
        with _explained(self._name):
            rows = self._database.execute("SELECT json, checksum FROM facts").fetchall()
        if len(rows) != 1 or _checksum(rows[0][0]) != rows[0][1]:
            raise self._damaged("its facts are not what was written")
        try:
            return msgspec.json.decode(rows[0][0], type=Facts)
        except msgspec.DecodeError as exc:
            raise self._damaged(str(exc)) from exc

    def contents(self, *, embeddings: bool) -> Contents:
        """Every picture and, where asked for, every embedding; each checked."""
        with _explained(self._name), self._transaction("DEFERRED"):
            facts = self.facts()
            pictures = self._pictures()
            if len(pictures) != facts.pictures:
                raise self._damaged(f"it lists {len(pictures)} pictures instead of {facts.pictures}")
            ids, rows = self._vectors("SELECT * FROM embeddings ORDER BY id" if embeddings else "", facts)
        if embeddings and (len(ids) != facts.embeddings or not all(int(i) in pictures for i in ids)):
            raise self._damaged(f"it has {len(ids)} embeddings instead of {facts.embeddings}")
        return Contents(facts, pictures, ids, rows)

    def embeddings_of(self, ids: Sequence[int]) -> tuple[Ids, Embeddings]:
        """Those of the ids that the index has, int64 [M] ascending, and their rows, float32 [M, D]."""
        facts, wanted, found = self.facts(), sorted(set(ids)), []
        with _explained(self._name):
            for start in range(0, len(wanted), _FETCHED):
                part = wanted[start : start + _FETCHED]
                marks = ",".join("?" * len(part))
                query = f"SELECT * FROM embeddings WHERE id IN ({marks}) ORDER BY id"
                found.append(self._vectors(query, facts, part))
        if not found:
            return np.empty(0, np.int64), np.empty((0, facts.made_by.dim), np.float32)
        return np.concatenate([part[0] for part in found]), np.concatenate([part[1] for part in found])

    def change(self, removed: Iterable[int], added: Sequence[tuple[Picture, Embeddings | None]]) -> None:
        """Take pictures out and put others in, with their embeddings float32 [D], in one step."""
        gone = [(number,) for number in removed]
        if not gone and not added:
            return
        with _explained(self._name), self._transaction("IMMEDIATE"):
            facts = self.facts()
            numbered = [(facts.next_id + i, *one) for i, one in enumerate(added)]
            pictures = [_picture_row(i, one) for i, one, _ in numbered]
            vectors = [_vector_row(i, row) for i, _, row in numbered if row is not None]
            self._put(
                msgspec.structs.replace(
                    facts,
                    pictures=facts.pictures + self._replace("pictures", gone, pictures),
                    embeddings=facts.embeddings + self._replace("embeddings", gone, vectors),
                    next_id=facts.next_id + len(added),
                )
            )

    def set_graph(self, stamp: GraphStamp) -> None:
        """Remember which graph belongs to the index."""
        with _explained(self._name), self._transaction("IMMEDIATE"):
            self._put(msgspec.structs.replace(self.facts(), graph=stamp))

    def close(self) -> None:
        self._database.close()

    def _create(self, facts: Facts) -> None:
        with self._transaction("IMMEDIATE"):
            if not self._pragma("schema_version"):
                for statement in _TABLES:
                    self._database.execute(statement)
                self._put(facts)

    def _check_format(self) -> None:
        if self._pragma("application_id") != APPLICATION_ID:
            raise PhotoIndexError(f"{self._name}: is not an index of photographs", hint="name another file")
        version = self._pragma("user_version")
        if version != FORMAT:
            raise PhotoIndexError(f"{self._name}: has index format {version}, this edgeclip has {FORMAT}", hint=ANEW)

    def _pictures(self) -> dict[int, Picture]:
        found = {}
        for row in self._database.execute("SELECT * FROM pictures"):
            if _checksum(*row[:-1]) != row[-1]:
                raise self._damaged(f"picture {row[0]} is not what was written")
            number, path, size, mtime_ns, digest, reason, _ = row
            found[number] = Picture(os.fsdecode(path), Stamp(size, mtime_ns), digest, reason)
        return found

    def _vectors(self, query: str, facts: Facts, arguments: Sequence[int] = ()) -> tuple[Ids, Embeddings]:
        ids, parts = [], []
        for number, vector, checksum in self._database.execute(query, arguments) if query else ():
            whole = isinstance(vector, bytes) and len(vector) == 4 * facts.made_by.dim
            if not whole or _vector_checksum(number, vector) != checksum:
                raise self._damaged(f"embedding {number} is not what was written")
            ids.append(number)
            parts.append(vector)
        rows = np.frombuffer(b"".join(parts), "<f4").astype(np.float32, copy=False)
        return np.array(ids, np.int64), rows.reshape(len(ids), facts.made_by.dim)

    def _replace(self, table: str, gone: Sequence[tuple[int]], rows: Sequence[tuple[Any, ...]]) -> int:
        """Delete rows by their ids and insert others; returns by how many rows the table has grown."""
        deleted = self._database.executemany(f"DELETE FROM {table} WHERE id = ?", gone).rowcount if gone else 0
        if rows:
            marks = ", ".join("?" * len(rows[0]))
            self._database.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
        return len(rows) - deleted

    def _put(self, facts: Facts) -> None:
        data = msgspec.json.encode(facts)
        self._database.execute("INSERT OR REPLACE INTO facts VALUES (1, ?, ?)", (data, _checksum(data)))

    def _pragma(self, name: str) -> int:
        return int(self._database.execute(f"PRAGMA {name}").fetchone()[0])

    @contextmanager
    def _transaction(self, kind: str) -> Iterator[None]:
        self._database.execute(f"BEGIN {kind}")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    def _damaged(self, why: str) -> PhotoIndexError:
        return PhotoIndexError(f"{self._name}: the index is damaged: {why}", hint=ANEW)


def open_file(path: Path | None, new: Facts) -> IndexFile:
    """The index at `path`, made with the facts where there is none; None keeps it in memory.

    Raises:
        PhotoIndexError: it is no index, of another format, or damaged.
        UsageError: it cannot be opened or written.
        ResourceError: the disk is full.
    """
    name = str(path) if path is not None else "the index"
    with _explained(name):
        database = sqlite3.connect(path or ":memory:", timeout=WAIT_S, isolation_level=None)
        file = IndexFile(path, database)
        try:
            if not file._pragma("schema_version"):
                database.execute(f"PRAGMA page_size = {PAGE_BYTES}")
                file._create(new)
            file._check_format()
        except BaseException:
            file.close()
            raise
    return file


def is_index(path: Path) -> bool:
    """Whether a file has the head of an index, or is empty."""
    with path.open("rb") as file:
        head = file.read(_ID_AT + 4)
    return not head or (head.startswith(_MAGIC) and head[_ID_AT:] == APPLICATION_ID.to_bytes(4, "big"))


def beside(path: Path) -> Path:
    """Where the index's graph of neighbours is."""
    return path.with_name(f"{path.name}.graph")


def remove(path: Path) -> None:
    """Remove an index and what lies beside it; nothing where there is none."""
    # The journal last: SQLite ignores one whose database is gone, but not a database whose journal is.
    for one in (path, path.with_name(f"{path.name}-journal"), beside(path)):
        one.unlink(missing_ok=True)


def _picture_row(number: int, one: Picture) -> tuple[Any, ...]:
    reason = one.reason.encode(errors="replace").decode()
    row = (number, os.fsencode(one.path), one.stamp.size, one.stamp.mtime_ns, one.digest, reason)
    return (*row, _checksum(*row))


def _vector_row(number: int, row: Embeddings) -> tuple[int, bytes, int]:
    data = np.ascontiguousarray(row, "<f4").tobytes()
    return number, data, _vector_checksum(number, data)


def _checksum(*values: int | bytes | str) -> int:
    """CRC-32 of a row's values as Python writes them, with their types."""
    return zlib.crc32(repr(values).encode())


def _vector_checksum(number: int, vector: bytes) -> int:
    """CRC-32 that binds a vector to its id."""
    return zlib.crc32(vector, number & 0xFFFFFFFF)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what SQLite says into our errors. It tells kinds apart by text alone on Python 3.10."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as exc:
        raise _meaning(name, str(exc)) from exc


def _meaning(name: str, text: str) -> EdgeClipError:
    if "closed" in text:
        return UsageError(f"{name}: the index is closed", hint="open it again")
    if "full" in text:
        return ResourceError(f"{name}: the disk is full", hint="free some space and run again")
    if "locked" in text:
        return UsageError(f"{name}: in use by another process", hint="wait for it")
    if "unable to open" in text or "readonly" in text:
        return UsageError(f"{name}: the index cannot be opened and written: {text}", hint="name another file")
    if "not a database" in text:
        return PhotoIndexError(f"{name}: is not an index of photographs", hint=f"if it was one, {ANEW}")
    return PhotoIndexError(f"{name}: the index is damaged: {text}", hint=ANEW)
