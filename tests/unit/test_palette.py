"""Tables that weights are rounded to: placed as well as theory says, and every number at its nearest entry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgeclip.quantize.palette import palette


def error(values: np.ndarray, bits: int) -> float:
    """Mean squared error, of the mean square."""
    table, places = palette(values, bits)
    wide = values.astype(np.float64)
    return float(np.square(table[places] - wide).mean() / np.square(wide).mean())


@pytest.mark.parametrize(("bits", "best"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_gaussian_numbers_lose_what_the_best_quantizer_loses(bits: int, best: float) -> None:
    """The figures are of J. Max, "Quantizing for minimum distortion", IRE Transactions on Information Theory 6, 1960."""
    values = np.random.default_rng(0).normal(size=100_000)
    assert error(values, bits) == pytest.approx(best, rel=0.02)


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_a_few_numbers_far_away_do_not_cost_the_many(bits: int) -> None:
    """A 3x3 convolution that a residual was folded into: small numbers, and a 1 a channel."""
    rng = np.random.default_rng(0)
    many, few = 0.03 * rng.normal(size=40_000), 1 + 0.02 * rng.normal(size=200)
    table, places = palette(np.concatenate([many, few]), bits)
    alone, where = palette(many, bits)
    with_few = np.square(table[places[: len(many)]] - many).mean()
    assert with_few < 2 * np.square(alone[where] - many).mean()
    assert np.abs(table[places[len(many) :]] - few).max() < 0.1


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_numbers_that_fit_the_table_are_exact(dtype: type) -> None:
    values = np.array([[0.5, -2, 0.5], [3, 3, -2]], dtype)
    table, places = palette(values, 4)
    assert table.shape == (16,)
    assert np.array_equal(table[places], values)


def test_one_number_is_a_table_too() -> None:
    table, places = palette(np.full((3, 4), 0.25, np.float16), 6)
    assert np.array_equal(table[places], np.full((3, 4), 0.25))


@settings(deadline=None, max_examples=100)
@given(
    arrays.arrays(np.float16, st.integers(1, 300), elements=st.floats(-1000, 1000, width=16)),
    st.sampled_from([1, 2, 3, 4, 6, 8]),
)
def test_every_number_goes_to_its_nearest_entry(values: np.ndarray, bits: int) -> None:
    table, places = palette(values, bits)
    assert table.shape == (1 << bits,) and np.isfinite(table).all() and (np.diff(table) >= 0).all()
    wide = values.astype(np.float64)
    nearest = np.abs(wide[:, None] - table[None]).min(axis=1)
    np.testing.assert_allclose(np.abs(wide - table[places]), nearest, rtol=1e-9, atol=1e-12)
