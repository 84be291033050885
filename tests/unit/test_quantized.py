"""Small embeddings against cases worked out by hand and against plain NumPy."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from edgeclip import quantized
from edgeclip.backends.base import Array, Embeddings
from edgeclip.errors import InputShapeError, NonFiniteError, UsageError
from edgeclip.quantized import from_int8, scale, search, similarity, to_binary, to_int8

KINDS = {"float32": lambda rows: rows, "float16": np.float16, "int8": to_int8, "binary": to_binary}
FLOAT_BOUND = 0.9
"""Of float's ten nearest, the least share that int8 must find among its own ten."""


def units(n: int, dim: int, seed: int = 0) -> Embeddings:
    return unit(np.random.default_rng(seed).normal(size=(n, dim)))


def unit(rows: Array) -> Embeddings:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def clustered(n: int, dim: int, seed: int = 0) -> Embeddings:
    """Rows around the same twenty centres, in the narrow cone that embeddings of one kind lie in."""
    fixed, rng = np.random.default_rng(99), np.random.default_rng(seed)
    centres = 0.5 * fixed.normal(size=dim) + fixed.normal(size=(20, dim))
    return unit(centres[rng.integers(20, size=n)] + 0.7 * rng.normal(size=(n, dim)))


# Conversion


def test_a_level_by_hand() -> None:
    assert scale(256) == pytest.approx(12 / 16 / 127)
    assert scale(4) == pytest.approx(1 / 127)  # no component of a unit vector is beyond 1
    assert to_int8(np.array([[0.6, -0.8, 0.0, 0.0]])).tolist() == [[76, -102, 0, 0]]


def test_the_factor_is_of_the_dimension_alone() -> None:
    one, other = units(1, 64, 1), units(1, 64, 2)
    assert (to_int8(np.concatenate([one, other]))[0] == to_int8(one)[0]).all()


def test_components_beyond_the_clip_are_clipped() -> None:
    row = np.zeros((1, 1024), np.float32)
    row[0, 0], row[0, 1] = np.sqrt(0.75), -0.5  # 12 / √1024 = 0.375
    assert to_int8(row)[0, :3].tolist() == [127, -127, 0]


def test_int8_comes_back_within_half_a_level() -> None:
    rows = units(50, 128)
    assert np.abs(from_int8(to_int8(rows)) - rows).max() <= scale(128) * 0.5001


def test_bits_lie_as_packbits_lays_them() -> None:
    signs = np.array([[1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1, -1, -1, -1, -1]])
    assert to_binary(unit(signs)).tolist() == [[0b10000001, 0b01000000]]


def test_zero_is_not_positive() -> None:
    assert to_binary(np.eye(8)).tolist() == [[1 << (7 - i)] for i in range(8)]
    assert to_binary(np.array([[-1.0] + [-0.0] * 7])).tolist() == [[0]]


@pytest.mark.parametrize("convert", [to_int8, to_binary])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (np.nan, NonFiniteError, "row 1 has NaN or infinity"),
        (-np.inf, NonFiniteError, "row 1 has NaN or infinity"),
        (0.0, UsageError, "row 1 has length 0, not 1"),
        (0.5, UsageError, "row 1 has length 2, not 1"),
    ],
)
def test_a_row_that_is_no_direction_is_named(convert: type, value: float, error: type[Exception], message: str) -> None:
    rows = units(3, 16)
    rows[1] = value
    with pytest.raises(error, match=message):
        convert(rows)


def test_binary_fills_its_bytes() -> None:
    with pytest.raises(UsageError, match="need a multiple of 8 dimensions, got 12 .use int8"):
        to_binary(units(1, 12))


def test_what_is_small_already_is_not_converted() -> None:
    with pytest.raises(UsageError, match="rows are int8, not floating"):
        to_int8(to_int8(units(1, 16)))
    with pytest.raises(UsageError, match="rows are float32, not int8"):
        from_int8(units(1, 16))


# Similarity


def test_int8_similarity_by_hand() -> None:
    a, b = np.array([[3, -4]], np.int8), np.array([[5, 6], [-127, 1]], np.int8)
    np.testing.assert_allclose(similarity(a, b), np.array([[-9, -385]]) / 127**2, rtol=1e-6)


@pytest.mark.parametrize("dim", [1, 2, 512, 1024, 1025, 4096])
@pytest.mark.parametrize("level", [127, -128])
def test_int8_products_do_not_overflow_nor_round(dim: int, level: int) -> None:
    a = np.full((2, dim), level, np.int8)
    a[1, -1] = level + 1 if level < 0 else level - 1
    expected = (a.astype(object) @ a.T.astype(object)).astype(float)
    assert (quantized._score_int8(a, a) == expected).all()


def test_int8_of_more_dimensions_than_32_bits_add_up_is_refused() -> None:
    with pytest.raises(UsageError, match="at most 131071 dimensions, got 131072"):
        similarity(np.zeros((1, 131072), np.int8), np.zeros((1, 131072), np.int8))


def test_binary_similarity_by_hand() -> None:
    a = np.array([[0b11110000, 0b00000000]], np.uint8)
    b = np.array([[0b11110000, 0], [0b11110000, 0b11110000], [0, 0b00001111], [0b00001111, 0b11111111]], np.uint8)
    assert similarity(a, b)[0] == pytest.approx([1.0, np.cos(np.pi / 4), 0.0, -1.0], abs=1e-6)


@pytest.mark.parametrize("bytes_", [1, 7, 8, 9, 64])
def test_bits_are_counted_with_and_without_numpys_own_count(bytes_: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (5, bytes_), np.uint8), rng.integers(0, 256, (4, bytes_), np.uint8)
    expected = -np.unpackbits(a[:, None] ^ b[None], axis=2).sum(axis=2).astype(int)
    assert (quantized._score_binary(a, b) == expected).all()
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert (quantized._score_binary(a, b) == expected).all()


def test_small_similarities_are_near_the_cosine() -> None:
    a, b = units(40, 512), units(30, 512, 1)
    b[:20] = unit(a[:20] + 0.5 * b[:20])
    cosine = a @ b.T
    assert np.abs(similarity(np.float16(a), np.float16(b)) - cosine).max() < 1e-3
    assert np.abs(similarity(to_int8(a), to_int8(b)) - cosine).max() < 0.02
    assert np.abs(similarity(to_binary(a), to_binary(b)) - cosine).max() < 0.25


@pytest.mark.parametrize(
    ("a", "b", "error", "message"),
    [
        (units(1, 16), to_int8(units(1, 16)), UsageError, "the first is floating, the second is int8"),
        (to_binary(units(1, 16)), to_int8(units(1, 2)), UsageError, "the first is binary, the second is int8"),
        (units(1, 16), units(1, 8), InputShapeError, "the first has 16 columns, the second has 8"),
        (units(1, 16)[0], units(1, 16), InputShapeError, r"the first: .* an array \[N, D\], got \[16\]"),
        ([[1.0]], units(1, 1), InputShapeError, r"the first: .* an array \[N, D\], got list"),
        (np.eye(2, dtype=np.int32), np.eye(2, dtype=np.int32), UsageError, "the first: .* got int32"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_named(a: Array, b: Array, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        similarity(a, b)


# Search


def plainly(index: Array, queries: Array, k: int) -> tuple[Array, Array]:
    """The whole matrix, sorted stably."""
    cosines = similarity(queries, index)
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(cosines, order, axis=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [1 << 20, 300])
def test_search_is_plain_sorting_whatever_the_chunks(kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    index, queries = KINDS[kind](units(200, 64)), KINDS[kind](units(30, 64, 1))
    expected = plainly(index, queries, 7)
    monkeypatch.setattr(quantized, "_CHUNK", chunk)
    monkeypatch.setattr(quantized, "_QUERIES", 9)
    found = search(index, queries, 7)
    np.testing.assert_array_equal(found.positions, expected[0])
    np.testing.assert_allclose(found.similarities, expected[1], atol=1e-6)
    assert found.positions.dtype == np.int64 and found.similarities.dtype == np.float32


@pytest.mark.parametrize("kind", KINDS)
def test_of_equals_the_earlier_row_comes_first(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "_CHUNK", 8 * 5)
    # Halves add up without rounding: equal rows are equal to the last bit.
    rows = np.zeros((24, 8), np.float32)
    rows[:, :4] = 0.5
    rows[[5, 17], 0] = -0.5
    found = search(KINDS[kind](rows), KINDS[kind](rows[5:6]), 24)
    assert found.positions[0].tolist() == [5, 17, *[i for i in range(24) if i not in (5, 17)]]


def test_negative_similarities_are_in_order() -> None:
    index = np.array([[-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [-0.6, 0.8], [0.6, 0.8]], np.float32)
    found = search(index, np.array([[1.0, 0.0]], np.float32), 5)
    assert found.positions[0].tolist() == [4, 1, 2, 3, 0]
    assert found.similarities[0] == pytest.approx([0.6, 0.0, 0.0, -0.6, -1.0])


@pytest.mark.parametrize("kind", KINDS)
def test_more_than_there_is_gives_what_there_is(kind: str) -> None:
    rows = KINDS[kind](units(3, 16))
    assert search(rows, rows, 10).positions.shape == (3, 3)
    assert search(rows[:0], rows, 10).positions.shape == (3, 0)
    assert search(rows, rows[:0], 2).similarities.shape == (0, 2)
    assert search(rows[:0], units(3, 16), 2, rescore=units(3, 16)[:0]).positions.shape == (3, 0)


@pytest.mark.parametrize("convert", [to_int8, to_binary])
def test_floating_queries_are_made_like_the_index(convert: type) -> None:
    index, queries = convert(units(50, 64)), units(5, 64, 1)
    assert (search(index, queries, 3).positions == search(index, convert(queries), 3).positions).all()


@pytest.mark.parametrize("convert", [to_int8, to_binary])
def test_rescoring_ranks_four_times_as_many_by_floats(convert: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "_CHUNK", 500)
    floats, queries = clustered(300, 64), clustered(9, 64, 1)
    candidates = search(convert(floats), queries, 20).positions
    found = search(convert(floats), queries, 5, rescore=np.float16(floats))
    cosines = queries @ np.float16(floats).astype(np.float32).T
    for row in range(9):
        best = sorted(candidates[row], key=lambda i: -cosines[row, i])[:5]
        assert found.positions[row].tolist() == best
    np.testing.assert_allclose(found.similarities, np.take_along_axis(cosines, found.positions, 1), atol=1e-6)


def test_rescoring_needs_what_the_index_was_made_of() -> None:
    rows = units(6, 16)
    with pytest.raises(UsageError, match="the queries: rescoring needs floating embeddings, got uint8"):
        search(to_binary(rows), to_binary(rows), 2, rescore=rows)
    with pytest.raises(UsageError, match="rescore: rescoring needs floating embeddings, got int8"):
        search(to_binary(rows), rows, 2, rescore=to_int8(rows))
    with pytest.raises(InputShapeError, match=r"rescore: expected \[6, 16\] .* got \[5, 16\]"):
        search(to_binary(rows), rows, 2, rescore=rows[:5])


def test_search_refuses_what_has_no_answer() -> None:
    rows = units(3, 16)
    with pytest.raises(UsageError, match="k must be at least 1, got 0"):
        search(rows, rows, 0)
    with pytest.raises(NonFiniteError, match="the embeddings have NaN or infinity"):
        search(np.where(rows > 0, rows, np.nan), rows, 1)
    with pytest.raises(UsageError, match="the index is int8, the queries is binary"):
        search(to_int8(rows), to_binary(units(3, 128)), 1)


def test_int8_finds_what_floats_find() -> None:
    index, queries = clustered(1000, 256), clustered(100, 256, 1)
    exact = search(index, queries, 10).positions
    found = search(to_int8(index), queries, 10).positions
    shares = [len(set(a) & set(b)) / 10 for a, b in zip(exact, found, strict=True)]
    assert np.mean(shares) > FLOAT_BOUND


def test_binary_finds_less_and_rescoring_makes_up_for_it() -> None:
    index, queries = clustered(1000, 256), clustered(100, 256, 1)
    exact = search(index, queries, 10).positions

    def shares(found: Array) -> float:
        return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, found, strict=True)]))

    alone = shares(search(to_binary(index), queries, 10).positions)
    again = shares(search(to_binary(index), queries, 10, rescore=index).positions)
    assert 0.2 < alone < again - 0.2 < 0.8


def test_a_large_index_on_disk_is_searched_in_little_memory(tmp_path: Path) -> None:
    rows, dim = 400_000, 64
    path = tmp_path / "index.npy"
    index = np.lib.format.open_memmap(path, "w+", np.int8, (rows, dim))
    index[:] = np.random.default_rng(0).integers(-30, 30, (rows, dim), np.int8)
    tracemalloc.start()
    try:
        found = search(np.load(path, mmap_mode="r"), index[[7, rows - 1]], 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.positions.tolist() == [[7], [rows - 1]]
    assert peak < 20 << 20  # all of it as float32 would be 100 MB


def test_the_module_needs_no_engine_and_no_torch() -> None:
    code = "import sys, edgeclip.quantized; print({'torch', 'onnxruntime', 'openvino', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
