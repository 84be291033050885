"""A graph of neighbours, which finds rows of a large index without looking at all of them; usearch holds it.

Source: Y. Malkov and D. Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical
Navigable Small World graphs", arXiv 1603.09320.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from edgeclip.backends.base import Embeddings
from edgeclip.indexfile import Ids

THRESHOLD = 100_000
"""Embeddings from which on a graph is made: there an exact search of 512 dimensions takes a second on two cores, one
along a graph half of that, by `python -m edgeclip.benchmarks.search`."""
CONNECTIVITY = 16
EXPANSION_ADD = 128
EXPANSION_SEARCH = 256
"""Rows that a search looks at, at least; recall against speed."""
CANDIDATES = 4
"""Rows fetched, to be compared exactly, for each result that is asked for; and `_MORE`."""
_MORE = 64
_PART = 4096
_PIECE_BYTES = 1 << 20


def available() -> bool:
    """Whether usearch is installed."""
    return find_spec("usearch") is not None


class Graph:
    """Ids of rows, by their neighbourhood. Made by `build` or `view`."""

    def __init__(self, index: Any) -> None:
        self._index = index

    def candidates(self, queries: Embeddings, k: int) -> Ids:
        """Ids among which the `k` nearest of each query [Q, D] most likely are, ascending."""
        wanted = min(len(self._index), CANDIDATES * k + _MORE)
        self._index.expansion_search = max(EXPANSION_SEARCH, wanted)
        return np.unique(self._index.search(queries, wanted).keys).astype(np.int64)

    def save(self, path: Path) -> str:
        """Write the graph to `path`, whole or not at all, by way of a file beside it; returns its sha256."""
        temp = path.with_name(f"{path.name}.tmp")
        self._index.save(str(temp))
        with temp.open("rb+") as file:
            os.fsync(file.fileno())
        digest = _sha256(temp)
        temp.replace(path)
        return digest


def build(ids: Ids, rows: Embeddings, advance: Callable[[int], None] = lambda amount: None) -> Graph:
    """A graph of rows float32 [N, D], each L2-normalised; minutes for some hundred thousand."""
    from usearch.index import Index

    index = Index(
        ndim=rows.shape[1],
        metric="ip",
        dtype="f16",
        connectivity=CONNECTIVITY,
        expansion_add=EXPANSION_ADD,
        expansion_search=EXPANSION_SEARCH,
    )
    for start in range(0, len(rows), _PART):
        index.add(ids[start : start + _PART].astype(np.uint64), rows[start : start + _PART])
        advance(len(rows[start : start + _PART]))
    return Graph(index)


def view(path: Path, sha256: str) -> Graph | None:
    """The graph in a file, which stays there; None where the file is missing or another one: usearch checks nothing."""
    from usearch.index import Index

    if not path.is_file() or _sha256(path) != sha256:
        return None
    return Graph(Index.restore(str(path), view=True))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()
