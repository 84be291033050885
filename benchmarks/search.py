"""What search in an index costs, exact and approximate, and what the latter misses.

`python -m edgeclip.benchmarks.search`, from whose numbers `edgeclip.neighbours.THRESHOLD` was chosen.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import click
import numpy as np

from edgeclip.backends.base import Embeddings
from edgeclip.benchmarks.environment import describe
from edgeclip.cli import progress
from edgeclip.cli.group import Command, examples
from edgeclip.cli.output import Output
from edgeclip.cpus import available_cpus
from edgeclip.errors import UsageError
from edgeclip.indexfile import Facts, IndexFile, Maker, Picture, beside, open_file
from edgeclip.nearest import Nearest
from edgeclip.picturefiles import Stamp

COUNTS = (10_000, 30_000, 100_000)
QUERIES = 200
TIMED = 5
"""Searches that are timed; the median is given."""
K = 10
SPREAD = 0.8
"""Of made embeddings about their clusters' centres, which have length 1."""
PER_CLUSTER = 50
NEVER = sys.maxsize
_INSERTED = 1000
T = TypeVar("T")


@dataclass(frozen=True)
class Measured:
    """One size of index. Times are those of a process that opens it, asks one query, and ends; start-up left out."""

    count: int
    dim: int
    exact_s: float
    approximate_s: float
    build_s: float
    """To make the graph of neighbours, once."""
    file_bytes: int
    graph_bytes: int
    recall: float
    """Share of the exact ten nearest that the approximate search finds, over all queries."""


@click.command(
    "search",
    cls=Command,
    epilog=examples(
        "python -m edgeclip.benchmarks.search",
        "python -m edgeclip.benchmarks.search --count 20000 --dim 768 --json",
        "python -m edgeclip.benchmarks.search --rows photos.npy --queries texts.npy",
    ),
)
@click.option("--count", "counts", type=click.IntRange(min=1), multiple=True, help="Embeddings; may be given again.")
@click.option("--dim", type=click.IntRange(min=1), default=512, show_default=True, help="Of made embeddings.")
@click.option(
    "--rows", type=click.Path(path_type=Path, exists=True), help="Real ones: what edgeclip embed -o X.npy wrote."
)
@click.option("--queries", "asked", type=click.Path(path_type=Path, exists=True), help="Their queries, a .npy, too.")
@click.pass_obj
def command(output: Output, counts: tuple[int, ...], dim: int, rows: Path | None, asked: Path | None) -> None:
    """Seconds of a search in an index of so many embeddings, exact and along a graph of neighbours, and its recall.

    Embeddings are made, in clusters, with queries that lie apart from them as texts do from images; or real.
    """
    if (rows is None) != (asked is None):
        raise UsageError("--rows and --queries go together")
    real = (np.load(rows), np.load(asked)[:QUERIES]) if rows is not None and asked is not None else None
    found = []
    for count in counts or ((len(real[0]),) if real else COUNTS):
        index, queries = (real[0][:count], real[1]) if real else lifelike(count, QUERIES, dim)
        with progress.bar(output, f"{count} embeddings", count) as advance:
            found.append(measure(index, queries, advance))
    output.document |= {"environment": describe(available_cpus()), "results": [asdict(one) for one in found]}
    show(output, found)


def lifelike(count: int, queries: int, dim: int, seed: int = 0) -> tuple[Embeddings, Embeddings]:
    """Rows float32 [count, dim] in clusters, and queries [queries, dim] about the same centres, but apart as a whole.

    The gap between images and texts is as wide as what tells pictures from one another.
    """
    rng = np.random.default_rng(seed)
    centres = _unit(rng.standard_normal((max(1, count // PER_CLUSTER), dim), np.float32))
    gap = _unit(rng.standard_normal((1, dim), np.float32))

    def about(n: int, side: float) -> Embeddings:
        noise = rng.standard_normal((n, dim), np.float32) * np.float32(SPREAD / np.sqrt(dim))
        return _unit(centres[rng.integers(0, len(centres), n)] + noise + np.float32(side) * gap)

    return about(count, 0.5), about(queries, -0.5)


def measure(rows: Embeddings, queries: Embeddings, advance: progress.Advance = lambda amount: None) -> Measured:
    """Put the rows float32 [N, D] in an index on disk, and search it both ways."""
    with tempfile.TemporaryDirectory(prefix="edgeclip-search-") as folder:
        path = Path(folder, "index")
        with_rows(path, rows).close()
        exact_s, exact = _timed(path, queries, NEVER)
        file = open_file(path, _facts(rows.shape[1]))
        build_s, _ = _seconds(lambda: Nearest(file, 0).build_graph(lambda name, amount: advance))
        file.close()
        approximate_s, near = _timed(path, queries, 0)
        return Measured(
            count=len(rows),
            dim=rows.shape[1],
            exact_s=exact_s,
            approximate_s=approximate_s,
            build_s=build_s,
            file_bytes=path.stat().st_size,
            graph_bytes=beside(path).stat().st_size,
            recall=float(np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(exact, near, strict=True)])),
        )


def with_rows(path: Path, rows: Embeddings) -> IndexFile:
    """A new index that holds the rows, of pictures that are nowhere."""
    file = open_file(path, _facts(rows.shape[1]))
    for start in range(0, len(rows), _INSERTED):
        part = enumerate(rows[start : start + _INSERTED], start)
        file.change([], [(Picture(f"folder/picture-{i:08d}.jpg", Stamp(i, i), b"\0" * 32), row) for i, row in part])
    return file


def show(output: Output, found: list[Measured]) -> None:
    """Print the table."""
    output.table(
        "Seconds to open an index and search it once",
        ("embeddings", "dims", "exact", "approximate", "recall@10", "graph made in", "index MB", "graph MB"),
        [
            [
                *(str(one.count), str(one.dim), f"{one.exact_s:.3f}", f"{one.approximate_s:.3f}"),
                *(f"{one.recall:.4f}", f"{one.build_s:.0f}"),
                *(f"{one.file_bytes / 1e6:.0f}", f"{one.graph_bytes / 1e6:.0f}"),
            ]
            for one in found
        ],
    )


def _timed(path: Path, queries: Embeddings, threshold: int) -> tuple[float, list[list[int]]]:
    """The median seconds of a search in a file that is opened for it, and what all queries find."""

    def once(some: Embeddings) -> list[list[int]]:
        file = open_file(path, _facts(queries.shape[1]))
        try:
            return [[number for number, _ in one] for one in Nearest(file, threshold).search(some, K)]
        finally:
            file.close()

    seconds = [_seconds(partial(once, query[None]))[0] for query in queries[:TIMED]]
    # One by one: candidates of one query would serve the others, too.
    file = open_file(path, _facts(queries.shape[1]))
    nearest = Nearest(file, threshold)
    found = [[number for number, _ in nearest.search(query[None], K)[0]] for query in queries]
    file.close()
    return float(np.median(seconds)), found


def _seconds(call: Callable[[], T]) -> tuple[float, T]:
    started = time.perf_counter()
    value = call()
    return time.perf_counter() - started, value


def _facts(dim: int) -> Facts:
    return Facts("", Maker("made", "", "", "", "", dim))


def _unit(rows: Embeddings) -> Embeddings:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


if __name__ == "__main__":
    from edgeclip.cli import main

    sys.exit(main(command=command, name="python -m edgeclip.benchmarks.search"))
