"""Rounding that keeps the sums of windows."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclip.quantize.onnx_weights import to_integers
from edgeclip.quantize.sums import round_windows


@pytest.fixture
def weights() -> NDArray[np.float64]:
    return np.random.default_rng(0).normal(scale=30, size=(7, 5, 4, 4))


def sums(weights: NDArray[np.generic]) -> NDArray[np.float64]:
    return np.asarray(weights.astype(np.float64).sum((2, 3)))


def test_every_windows_sum_stays_within_a_half(weights: NDArray[np.float64]) -> None:
    assert np.abs(sums(np.rint(weights)) - sums(weights)).max() > 2, "nothing to mend"
    assert np.abs(sums(round_windows(weights)) - sums(weights)).max() <= 0.5


def test_no_weight_moves_by_one_or_more_and_integers_stay(weights: NDArray[np.float64]) -> None:
    weights[:, :, 0, :2] = 127
    rounded = round_windows(weights)
    assert np.abs(rounded - weights).max() < 1
    assert (rounded[:, :, 0, :2] == 127).all()


def test_those_nearest_to_the_middle_go_to_the_other_side() -> None:
    window = np.array([0.4, 0.3, 0.2, 0.1]).reshape(1, 1, 2, 2)
    assert round_windows(window).ravel().tolist() == [1, 0, 0, 0]
    assert round_windows(-window).ravel().tolist() == [-1, 0, 0, 0]


def test_levels_stay_in_range_and_others_make_up_for_it() -> None:
    window = np.array([127.4, 3.3, 0.1, 0.2]).reshape(1, 1, 2, 2)
    assert round_windows(window).ravel().tolist() == [127, 4, 0, 0]
    assert round_windows(-window, low=-128).ravel().tolist() == [-128, -3, 0, 0]


def test_a_kernels_codes_keep_the_sums_of_its_windows_and_the_range() -> None:
    kernel = np.random.default_rng(1).normal(size=(8, 4, 3, 3)).astype(np.float32)
    codes, scales = to_integers(kernel, 0)
    assert np.abs(sums(codes) - sums(kernel / scales)).max() <= 0.5 + 1e-4
    assert np.abs(codes).max(axis=(1, 2, 3)).tolist() == [127] * 8


def test_a_matrix_is_rounded_to_the_nearest() -> None:
    matrix = np.random.default_rng(1).normal(size=(8, 40)).astype(np.float32)
    codes, scales = to_integers(matrix, 0)
    np.testing.assert_array_equal(codes, np.rint(matrix / scales))
