"""Text embeddings kept on disk, so that a classifier's prompts are encoded once per device.

One SQLite file per (bundle, artifact, engine, arithmetic). The key of a row is the token ids, so that neither another
tokenizer nor another model can ever answer for this one.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import numpy as np

from edgeclip import cache
from edgeclip.backends.base import Array, Embeddings


class TextCache:
    """A map from token ids to embeddings. Safe to use from many threads and processes; never a reason to fail."""

    def __init__(self, fingerprint: str, embed_dim: int) -> None:
        self._name = f"text/{fingerprint}.sqlite"
        self._dim = embed_dim
        self._lock = threading.Lock()

    def get(self, rows: Array) -> dict[bytes, Embeddings]:
        """The embeddings that are known, by `key(row)`; rows is int32 [N, C]."""
        keys = [key(row) for row in rows]
        with self._lock:
            try:
                with closing(self._connect()) as db:
                    found = {k: db.execute("SELECT v FROM e WHERE k = ?", (k,)).fetchone() for k in keys}
            except (sqlite3.Error, OSError):
                return {}
        known = {k: np.frombuffer(v[0], np.float32) for k, v in found.items() if v}
        return {k: v for k, v in known.items() if v.shape == (self._dim,) and np.isfinite(v).all()}

    def put(self, entries: Iterable[tuple[bytes, Embeddings]]) -> None:
        """Keep embeddings, each float32 [D]."""
        values = [(k, np.ascontiguousarray(v, np.float32).tobytes()) for k, v in entries]
        with self._lock:
            try:
                with closing(self._connect()) as db, db:
                    db.executemany("INSERT OR REPLACE INTO e VALUES (?, ?)", values)
            except sqlite3.DatabaseError:
                self._discard()
            except OSError:
                pass

    def _connect(self) -> sqlite3.Connection:
        path = self._path()
        if path is None:
            raise OSError("no cache directory")
        db = sqlite3.connect(path, timeout=5.0)
        db.execute("CREATE TABLE IF NOT EXISTS e (k BLOB PRIMARY KEY, v BLOB NOT NULL) WITHOUT ROWID")
        return db

    def _path(self) -> Path | None:
        root = cache.directory()
        if root is None:
            return None
        path = root / self._name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    def _discard(self) -> None:
        """A torn or foreign file is dropped; the next call makes a new one."""
        path = self._path()
        if path is not None:
            path.unlink(missing_ok=True)


def key(row: Array) -> bytes:
    """The cache key of one row of token ids, int32 [C]: the ids themselves, little-endian."""
    return np.ascontiguousarray(row, "<i4").tobytes()
