"""Rounding that makes up for itself."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclip.quantize.correction import round_rows

LARGEST = 127


@pytest.fixture
def rows() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(16, 300)).astype(np.float32)


def scales_of(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.abs(rows).max(axis=1) / LARGEST, np.float32)


def loss(rows: NDArray[np.float32], codes: NDArray[np.int8], inputs: NDArray[np.float64]) -> float:
    return float(np.square(inputs @ (codes * scales_of(rows)[:, None] - rows).T).mean())


def test_inputs_that_go_together_lose_less_than_half(rows: NDArray[np.float32]) -> None:
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(2000, 20)) @ rng.normal(size=(20, 300)) + 0.1 * rng.normal(size=(2000, 300))
    seen, unseen = inputs[:1000], inputs[1000:]
    scales = scales_of(rows)
    nearest = np.rint(rows / scales[:, None]).astype(np.int8)
    corrected = round_rows(rows, scales, seen.T @ seen, LARGEST)
    assert loss(rows, corrected, unseen) < 0.5 * loss(rows, nearest, unseen)


def test_inputs_that_have_nothing_in_common_leave_the_nearest_integers(rows: NDArray[np.float32]) -> None:
    scales = scales_of(rows)
    codes = round_rows(rows, scales, np.eye(300), LARGEST)
    assert np.array_equal(codes, np.rint(rows.astype(np.float64) / scales.astype(np.float64)[:, None]))


def test_codes_stay_in_their_range(rows: NDArray[np.float32]) -> None:
    inputs = np.ones((10, 300)) + 0.01 * np.random.default_rng(2).normal(size=(10, 300))
    codes = round_rows(rows, scales_of(rows) / 2, inputs.T @ inputs, LARGEST)
    assert codes.min() >= -LARGEST and codes.max() <= LARGEST


def test_inputs_that_are_always_zero_do_no_harm(rows: NDArray[np.float32]) -> None:
    codes = round_rows(rows, scales_of(rows), np.zeros((300, 300)), LARGEST)
    assert np.abs(codes * scales_of(rows)[:, None] - rows).max() <= 0.51 * scales_of(rows).max()
