"""Tables of few numbers that many are rounded to, each placed where it loses the least. Plain arithmetic, no chance.

Lloyd's algorithm in one dimension: a number goes to the nearest entry, an entry to the mean of its numbers, until
nothing moves. The numbers are sorted, so that entries divide them into runs, whose means come from running sums.

Source: S. Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory 28, 1982.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
_FINER = 8
"""Runs that a table's first entries are merged from, for each of them."""
_TINY = 1e-300
_ROUNDS = 100


def palette(values: Floats, bits: int) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Round numbers to a table.

    Args:
        values: of any shape, finite.
        bits: 1 to 8.

    Returns:
        The table, float64 [2 ** bits], ascending; and the place of each number in it, of the shape of `values`.
    """
    numbers, counts = np.unique(np.asarray(values, np.float64), return_counts=True)
    table = _settle(numbers, counts, _start(numbers, counts, 1 << bits))
    return table, np.searchsorted(_middles(table), values, side="left").astype(np.uint8)


def _start(numbers: Floats, counts: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """Entries for Lloyd's algorithm to begin with: means of small runs, of which those next to each other are merged.

    Two runs are merged where it adds the least to the squared error. Source: J. H. Ward, "Hierarchical grouping to
    optimize an objective function", Journal of the American Statistical Association 58, 1963.
    """
    held, means = _runs(numbers, counts, _FINER * size)
    while len(means) > size:
        both = held[1:] + held[:-1]
        at = int(np.argmin(held[1:] * held[:-1] / both * np.square(np.diff(means))))
        means[at] = (held[at] * means[at] + held[at + 1] * means[at + 1]) / both[at]
        held[at] = both[at]
        held, means = np.delete(held, at + 1), np.delete(means, at + 1)
    return np.concatenate([means, np.repeat(means[-1:], size - len(means))])


def _runs(numbers: Floats, counts: NDArray[np.int64], most: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How many there are in each run of neighbours, and their means. Runs are short in numbers, or in distance."""
    ranks, distances = np.cumsum(counts) / counts.sum(), numbers - numbers[0]
    place = (ranks + distances / max(float(distances[-1]), _TINY)) / 2
    first = np.flatnonzero(np.diff(np.floor(place * (most - 1)), prepend=-1))
    held = np.add.reduceat(counts, first).astype(np.float64)
    return held, np.add.reduceat(numbers * counts, first) / held


def _settle(numbers: Floats, counts: NDArray[np.int64], table: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.concatenate([[0.0], np.cumsum(counts)])
    sums = np.concatenate([[0.0], np.cumsum(numbers * counts)])
    for _ in range(_ROUNDS):
        edges = np.concatenate([[0], np.searchsorted(numbers, _middles(table), side="right"), [len(numbers)]])
        held = np.diff(weights[edges])
        moved = np.where(held > 0, np.diff(sums[edges]) / np.maximum(held, 1), table)
        if np.array_equal(moved, table):
            break
        table = np.sort(moved)
    return table


def _middles(table: NDArray[np.float64]) -> NDArray[np.float64]:
    return (table[1:] + table[:-1]) / 2
