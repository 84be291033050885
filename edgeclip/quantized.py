"""Embeddings that are small, and search among them; NumPy alone.

int8    One factor for all rows, images and texts, and for all models of a dimension D: a component is about
        level × scale(D), with levels in [-127, 127]. So the integer dot product of two rows, times scale(D)², is about
        their cosine.
binary  One bit a coordinate, set where it is positive, in the order of `np.packbits`: the first coordinate is the
        highest bit of the first byte. D must be a multiple of 8, so that the bytes tell D.

A row's dtype says what it is: floating, int8, or uint8 for binary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeclip.backends.base import Array, Embeddings
from edgeclip.errors import InputShapeError, NonFiniteError, UsageError

Dtype = Literal["float32", "float16", "int8", "binary"]
Int8 = NDArray[np.int8]
Bits = NDArray[np.uint8]

CLIP = 12.0
"""Components beyond this many standard deviations, of 1/√D each, are clipped by int8.

The built-in model would keep more of its neighbours with 4, beyond which its components hardly go. But CLIP models
that were trained on much data have a few coordinates that are many times larger than the others (arXiv 2310.13040), and
where those are clipped, similarities are wrong throughout. What another value does to a model is measured by
`python -m edgeclip.benchmarks.embeddings --clip`.
"""
LEVELS = 127
CANDIDATES = 4
"""Candidates that are scored again, for each result that is asked for."""
_LONGEST_INT8 = (1 << 17) - 1
"""Dimensions whose integer dot product fits 32 bits whatever the levels."""
_EXACT_IN_FLOAT32 = 1 << 10
"""Dimensions whose integer dot product float32 adds up without rounding: 128² · 2¹⁰ = 2²⁴."""
_UNIT = 0.02
"""How far from 1 a row's length may lie; bfloat16 arithmetic stays within a third of that."""
_CHUNK = 1 << 20
"""Similarities, or numbers widened for them, that are held at once; with what is made of them about 40 MB."""
_QUERIES = 256
_POSITION_BITS = 32


class Found(NamedTuple):
    """What a search finds, best first; of equal similarities the earlier row of the index."""

    positions: NDArray[np.int64]
    """int64 [Q, K], rows of the index; K is k, or the index's size where that is less."""
    similarities: Embeddings
    """float32 [Q, K], cosines, or what stands for them: see `similarity`."""


def scale(dim: int) -> float:
    """What one int8 level is worth in embeddings of `dim` dimensions."""
    if dim < 1:
        raise UsageError(f"an embedding has at least 1 dimension, got {dim}")
    return min(CLIP / math.sqrt(dim), 1.0) / LEVELS


def to_int8(rows: Array) -> Int8:
    """Round floating rows [N, D], each L2-normalised, to int8 [N, D].

    Raises:
        NonFiniteError: a row has NaN or infinity.
        UsageError: a row's length is not 1.
    """
    floats = _unit(rows)
    _check_int8(floats.shape[1])
    levels = np.rint(floats / np.float32(scale(floats.shape[1])))
    return np.asarray(np.clip(levels, -LEVELS, LEVELS), np.int8)


def from_int8(rows: Array) -> Embeddings:
    """int8 [N, D] as float32 [N, D]; within half a level of what it was made of where nothing was clipped."""
    if _kind(rows, "rows") is not _INT8:
        raise UsageError(f"rows are {np.asarray(rows).dtype}, not int8")
    return np.asarray(rows, np.float32) * np.float32(scale(np.shape(rows)[1]))


def to_binary(rows: Array) -> Bits:
    """The signs of floating rows [N, D], each L2-normalised, as uint8 [N, D / 8].

    Raises:
        NonFiniteError: a row has NaN or infinity.
        UsageError: a row's length is not 1, or D is not a multiple of 8.
    """
    floats = _unit(rows)
    check_binary(floats.shape[1])
    return np.packbits(floats > 0, axis=1, bitorder="big")


def check_binary(dim: int) -> None:
    """Whether embeddings of `dim` dimensions can be binary.

    Raises:
        UsageError: they would not fill their last byte.
    """
    if dim % 8:
        raise UsageError(f"binary embeddings need a multiple of 8 dimensions, got {dim}", hint="use int8")


def similarity(a: Array, b: Array) -> Embeddings:
    """Cosines of embeddings [N, …] and [M, …] of one dtype. Returns float32 [N, M].

    int8 dot products are exact whatever the levels. Of binary embeddings that differ in h of D bits it is cos(π·h/D):
    exact on average where bits are the sides of random planes, which coordinates only resemble; trust its order.
    Source: M. S. Charikar, "Similarity Estimation Techniques from Rounding Algorithms", 2002, for binary.

    Raises:
        UsageError: they are of different dtypes, or of none that is known.
        InputShapeError: they are not matrices, or of different dimensions.
    """
    kind = _kind(a, "the first")
    _check_same(a, b, ("the first", "the second"))
    out = np.empty((len(a), len(b)), np.float32)
    for part in _parts(len(a), _CHUNK // max(1, len(b))):
        out[part] = kind.cosine(kind.score(a[part], b), a.shape[1])
    return out


def search(index: Array, queries: Array, k: int, *, rescore: Array | None = None) -> Found:
    """The `k` rows of an index that are most similar to each query. Memory is bounded whatever the index's size.

    Args:
        index: [N, …] of any dtype; it may be memory-mapped.
        queries: [Q, …] of the index's dtype, or floating [Q, D], which are then made like the index.
        rescore: floating [N, D], what the index was made of; it may be memory-mapped. Of the 4·k rows that the index
            finds, the `k` best by these are kept. Queries must be floating.

    Raises:
        UsageError: as `similarity`, `to_int8` and `to_binary`; or `k` is less than 1.
        InputShapeError: as `similarity`, or `rescore` does not fit.
        NonFiniteError: a row has NaN or infinity.
    """
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}")
    kind = _kind(index, "the index")
    floats = queries if rescore is not None else None
    queries = _like(index, queries)
    wanted, columns = min(k, len(index)), index.shape[1]
    if rescore is None or floats is None:
        return _collected(kind, columns, wanted, [_nearest(kind, index, part, wanted) for part in _rows(queries)])
    _check_rescore(index, floats, rescore)
    first = [_nearest(kind, index, part, min(CANDIDATES * k, len(index))) for part in _rows(queries)]
    again = [
        _rescored(_positions(keys), part, rescore)[:, :wanted] for keys, part in zip(first, _rows(floats), strict=True)
    ]
    return _collected(_FLOATING, columns, wanted, again)


@dataclass(frozen=True)
class _Kind:
    """How embeddings of one dtype are compared."""

    name: str
    score: Callable[[Array, Array], Array]
    """[n, m], int32 or float32; larger where they are more similar."""
    cosine: Callable[[Array, int], Array]
    """Of scores, and the number of columns."""


def _score_floating(a: Array, b: Array) -> Array:
    return np.asarray(a, np.float32) @ np.asarray(b, np.float32).T


def _score_int8(a: Array, b: Array) -> Array:
    """Integer dot products. Added up in floating point, which is fast, with room for every digit."""
    wide: type[np.floating[Any]] = np.float32 if a.shape[1] <= _EXACT_IN_FLOAT32 else np.float64
    return np.asarray(a.astype(wide) @ b.astype(wide).T, np.int32)


def _score_binary(a: Array, b: Array) -> Array:
    """Minus the number of bits that differ."""
    differing = np.zeros((len(a), len(b)), np.int32)
    for x, y in zip(_words(a), _words(b), strict=True):
        differing += _popcount(x[:, None] ^ y[None, :])
    return -differing


def _words(rows: Array) -> NDArray[np.uint64]:
    """uint64 [W, N] of uint8 [N, B], filled up with zeros."""
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 8)))
    return np.ascontiguousarray(padded.view(np.uint64).T)


def _popcount(words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    if hasattr(np, "bitwise_count"):  # from NumPy 2.0 on
        return np.asarray(np.bitwise_count(words), np.uint8)
    return np.asarray(np.unpackbits(words.view(np.uint8), axis=1).reshape(*words.shape, 64).sum(axis=2), np.uint8)


_FLOATING = _Kind("floating", _score_floating, lambda scores, columns: scores)
_INT8 = _Kind("int8", _score_int8, lambda scores, columns: scores * scale(columns) ** 2)
_BINARY = _Kind("binary", _score_binary, lambda scores, columns: np.cos(np.pi * scores / (8 * columns)))


def _kind(rows: Array, name: str) -> _Kind:
    """
    Raises:
        UsageError: embeddings have no such dtype.
        InputShapeError: it is no matrix.
    """
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or not rows.shape[1]:
        found = list(rows.shape) if isinstance(rows, np.ndarray) else type(rows).__name__
        raise InputShapeError(f"{name}: embeddings are an array [N, D], got {found}")
    if np.issubdtype(rows.dtype, np.floating):
        return _FLOATING
    if rows.dtype == np.int8:
        _check_int8(rows.shape[1])
        return _INT8
    if rows.dtype == np.uint8:
        return _BINARY
    raise UsageError(f"{name}: embeddings are floating, int8, or uint8 where they are binary; got {rows.dtype}")


def _check_int8(dim: int) -> None:
    if dim > _LONGEST_INT8:
        raise UsageError(f"int8 embeddings have at most {_LONGEST_INT8} dimensions, got {dim}")


def _check_same(a: Array, b: Array, names: tuple[str, str]) -> None:
    kinds = _kind(a, names[0]), _kind(b, names[1])
    if kinds[0] is not kinds[1]:
        raise UsageError(
            f"{names[0]} is {kinds[0].name}, {names[1]} is {kinds[1].name}",
            hint="embeddings of one dtype can be compared",
        )
    if a.shape[1] != b.shape[1]:
        raise InputShapeError(f"{names[0]} has {a.shape[1]} columns, {names[1]} has {b.shape[1]}")


def _unit(rows: Array) -> Embeddings:
    """
    Raises:
        NonFiniteError, UsageError: naming the first row that is not of length 1.
    """
    if _kind(rows, "rows") is not _FLOATING:
        raise UsageError(f"rows are {rows.dtype}, not floating")
    floats = np.asarray(rows, np.float32)
    lengths = np.linalg.norm(floats, axis=1)
    if not np.isfinite(lengths).all():
        raise NonFiniteError(f"row {int(np.argmin(np.isfinite(lengths)))} has NaN or infinity")
    wrong = np.abs(lengths - 1) > _UNIT
    if wrong.any():
        first = int(wrong.argmax())
        raise UsageError(f"row {first} has length {lengths[first]:.3g}, not 1", hint="normalise rows first")
    return floats


def _like(index: Array, queries: Array) -> Array:
    """Queries as the index holds its rows."""
    if _kind(queries, "the queries") is _FLOATING:
        kind = _kind(index, "the index")
        queries = to_int8(queries) if kind is _INT8 else to_binary(queries) if kind is _BINARY else queries
    _check_same(index, queries, ("the index", "the queries"))
    return queries


def _check_rescore(index: Array, floats: Array, rescore: Array) -> None:
    for rows, name in ((floats, "the queries"), (rescore, "rescore")):
        if _kind(rows, name) is not _FLOATING:
            raise UsageError(f"{name}: rescoring needs floating embeddings, got {rows.dtype}")
    if rescore.shape != (len(index), floats.shape[1]):
        expected = [len(index), floats.shape[1]]
        raise InputShapeError(f"rescore: expected {expected} as the index and the queries, got {list(rescore.shape)}")


def _nearest(kind: _Kind, index: Array, queries: Array, k: int) -> NDArray[np.int64]:
    """The keys of the `k` best rows, [Q, k], in order."""
    best = np.empty((len(queries), 0), np.int64)
    for part in _parts(len(index), _CHUNK // max(len(queries), index.shape[1])):
        found = _keys(kind.score(queries, index[part]), np.arange(part.start, part.stop))
        best = np.concatenate([best, found], axis=1)
        if best.shape[1] > k:
            best = np.partition(best, k - 1, axis=1)[:, :k]
    return np.sort(best, axis=1)


def _rescored(positions: NDArray[np.int64], queries: Array, rescore: Array) -> NDArray[np.int64]:
    """The keys of the candidates, [Q, C], by other embeddings and in order."""
    out = np.empty_like(positions)
    for part in _parts(len(queries), _CHUNK // (positions.shape[1] * rescore.shape[1] or 1)):
        rows = np.asarray(rescore[positions[part]], np.float32)
        scores = rows @ np.asarray(queries[part], np.float32)[:, :, None]
        out[part] = np.sort(_keys(scores[:, :, 0], positions[part]), axis=1)
    return out


def _keys(scores: Array, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """One integer that sorts by score, the highest first, then by position; so that no two of a query are equal."""
    if not np.isfinite(scores).all():
        raise NonFiniteError("the embeddings have NaN or infinity")
    ordered = scores if scores.dtype == np.int32 else _flipped((scores + np.float32(0)).view(np.int32))
    return (-ordered.astype(np.int64) << _POSITION_BITS) | positions


def _flipped(bits: NDArray[np.int32]) -> NDArray[np.int32]:
    """The bits of floats as integers in the same order, and back."""
    return np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits)


def _positions(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    return keys & ((1 << _POSITION_BITS) - 1)


def _collected(kind: _Kind, columns: int, k: int, keys: list[NDArray[np.int64]]) -> Found:
    together = np.concatenate([np.empty((0, k), np.int64), *keys])
    ordered = np.asarray(-(together >> _POSITION_BITS), np.int32)
    scores: NDArray[Any] = _flipped(ordered).view(np.float32) if kind is _FLOATING else ordered
    return Found(_positions(together), np.asarray(kind.cosine(scores, columns), np.float32))


def _rows(queries: Array) -> Iterator[Array]:
    """Queries that are searched for at once."""
    return (queries[part] for part in _parts(len(queries), _QUERIES))


def _parts(n: int, step: int) -> Iterator[slice]:
    step = max(1, step)
    return (slice(start, min(n, start + step)) for start in range(0, n, step))
