"""Search among the embeddings of an index: with all of them, or along a graph of neighbours where they are many."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import numpy as np

from edgeclip import indexfile, neighbours, quantized
from edgeclip.backends.base import Array, Embeddings
from edgeclip.indexfile import Contents, Facts, GraphStamp, Ids, IndexFile
from edgeclip.neighbours import Graph

Method = Literal["exact", "approximate"]
Advance = Callable[[int], None]
Start = Callable[[str, int], Advance]
"""Called as long work begins, with its name and amount; returns what tells how much is done."""
STALE = 0.1
"""Share of the embeddings that may be missing from the graph, or gone, before it is made anew."""


class Nearest:
    """What an index holds, read once, and search in it."""

    def __init__(self, file: IndexFile, threshold: int = neighbours.THRESHOLD) -> None:
        self._file = file
        self._threshold = threshold
        self._contents: Contents | None = None
        self._graph: Graph | None = None

    @property
    def method(self) -> Method:
        """`approximate` where there is a graph, which chooses what is compared."""
        self.contents()
        return "exact" if self._graph is None else "approximate"

    def contents(self) -> Contents:
        """What the index holds; without embeddings where the graph stands in for them."""
        if self._contents is None:
            self._graph = self._view_graph(self._file.facts())
            self._contents = self._file.contents(embeddings=self._graph is None)
        return self._contents

    def forget(self) -> None:
        """Read the index again when it is next needed."""
        self._contents = self._graph = None

    def search(self, queries: Array, k: int) -> list[list[tuple[int, float]]]:
        """Ids and cosines of the `k` nearest pictures of each query, floating [Q, D]; cosines are exact either way."""
        ids, rows = self._compared(queries, k)
        found = quantized.search(rows, queries, k)
        return [
            list(zip(numbers, cosines, strict=True))
            for numbers, cosines in zip(ids[found.positions].tolist(), found.similarities.tolist(), strict=True)
        ]

    def graph_is_due(self, contents: Contents) -> bool:
        """Whether the index is large, and has no graph that still fits; warns where usearch is missing."""
        count, stamp = contents.facts.embeddings, contents.facts.graph
        if self._file.path is None or count < self._threshold:
            return False
        if not neighbours.available():
            warnings.warn(
                f"usearch is not installed: each search compares with all {count} pictures "
                "(pip install 'edgeclip[search]')",
                stacklevel=2,
            )
            return False
        if stamp is None or self._view_graph(contents.facts) is None:
            return True
        newer = sum(1 for number in _newer(contents, stamp) if not contents.pictures[number].reason)
        gone = stamp.count - (count - newer)
        return newer + gone > STALE * count

    def build_graph(self, start: Start) -> None:
        """Make the graph of all that the index holds. For who may change the index."""
        assert self._file.path is not None
        contents = self._file.contents(embeddings=True)
        graph = neighbours.build(contents.ids, contents.embeddings, start("linking neighbours", len(contents.ids)))
        digest = graph.save(indexfile.beside(self._file.path))
        self._file.set_graph(GraphStamp(digest, int(contents.ids[-1]), len(contents.ids)))
        self.forget()

    def _compared(self, queries: Array, k: int) -> tuple[Ids, Embeddings]:
        """Ids and rows: all, or those that the graph finds and those that it lacks."""
        contents = self.contents()
        if self._graph is None or contents.facts.graph is None:
            return contents.ids, contents.embeddings
        near = self._graph.candidates(np.asarray(queries, np.float32), k).tolist()
        newer = _newer(contents, contents.facts.graph)
        return self._file.embeddings_of([*(number for number in near if number in contents.pictures), *newer])

    def _view_graph(self, facts: Facts) -> Graph | None:
        path, stamp = self._file.path, facts.graph
        if path is None or stamp is None or facts.embeddings < self._threshold or not neighbours.available():
            return None
        return neighbours.view(indexfile.beside(path), stamp.sha256)


def _newer(contents: Contents, stamp: GraphStamp) -> list[int]:
    """Ids of the pictures that the graph lacks, since they came later."""
    return [number for number in contents.pictures if number > stamp.last_id]
