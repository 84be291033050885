"""Small embeddings of any shape: what comes back, and that similarity and search agree with plain arithmetic."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeclip.backends.base import Embeddings
from edgeclip.quantized import CLIP, from_int8, scale, search, similarity, to_binary, to_int8

EXAMPLES = settings(max_examples=60, deadline=None, database=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


def drawn(seed: int, n: int, dim: int, spread: float = 0.0) -> Embeddings:
    """Unit rows; with more spread, more of their length is in few coordinates."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, dim)) * np.exp(spread * rng.normal(size=dim))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


@EXAMPLES
@given(seed=seeds, n=st.integers(1, 20), dim=st.integers(1, 700), spread=st.floats(0, 2))
def test_int8_is_within_half_a_level_or_clipped(seed: int, n: int, dim: int, spread: float) -> None:
    rows = drawn(seed, n, dim, spread)
    levels = to_int8(rows)
    inside = np.clip(rows, -127 * scale(dim), 127 * scale(dim))
    assert levels.min() >= -127 and 127 * scale(dim) <= CLIP / dim**0.5 * 1.0001
    assert np.abs(from_int8(levels) - inside).max() <= 0.501 * scale(dim)
    np.testing.assert_array_equal(to_int8(-rows), -levels)


@EXAMPLES
@given(seed=seeds, n=st.integers(1, 20), size=st.integers(1, 90), spread=st.floats(0, 2))
def test_binary_keeps_the_signs_in_their_order(seed: int, n: int, size: int, spread: float) -> None:
    rows = drawn(seed, n, 8 * size, spread)
    bits = to_binary(rows)
    assert (bits.shape, bits.dtype) == ((n, size), np.uint8)
    np.testing.assert_array_equal(np.unpackbits(bits, axis=1).astype(bool), rows > 0)


@EXAMPLES
@given(seed=seeds, n=st.integers(1, 9), m=st.integers(1, 9), dim=st.integers(1, 1500))
def test_int8_similarity_is_the_integer_product(seed: int, n: int, m: int, dim: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(-128, 128, (n, dim), np.int8), rng.integers(-128, 128, (m, dim), np.int8)
    exact = a.astype(np.int64) @ b.astype(np.int64).T
    np.testing.assert_array_equal(similarity(a, b), np.asarray(exact * scale(dim) ** 2, np.float32))


@EXAMPLES
@given(seed=seeds, n=st.integers(1, 9), m=st.integers(1, 9), size=st.integers(1, 70))
def test_binary_similarity_is_of_the_bits_that_differ(seed: int, n: int, m: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 256, (n, size), np.uint8), rng.integers(0, 256, (m, size), np.uint8)
    differing = (np.unpackbits(a, axis=1)[:, None] != np.unpackbits(b, axis=1)[None]).sum(axis=2)
    np.testing.assert_allclose(similarity(a, b), np.cos(np.pi * differing / (8 * size)), atol=1e-6)


@EXAMPLES
@given(seed=seeds, n=st.integers(0, 60), k=st.integers(1, 70), kind=st.sampled_from(["int8", "binary"]))
def test_search_sorts_by_similarity_then_position(seed: int, n: int, k: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    # Few different rows, so that there are many ties.
    low, high, dtype = (-1, 2, np.int8) if kind == "int8" else (0, 4, np.uint8)
    index, query = rng.integers(low, high, (n, 3), dtype), rng.integers(low, high, (1, 3), dtype)
    cosines = similarity(query, index)[0]
    expected = sorted(range(n), key=lambda i: (-cosines[i], i))[:k]
    assert search(index, query, k).positions[0].tolist() == expected
