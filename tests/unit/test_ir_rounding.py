"""Rounding to 4 bits."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclip.quantize.groups import group_size
from edgeclip.quantize.ir_rounding import correct_rounding, pack, round_to_int4


def restored(levels: NDArray[np.int8], scales: NDArray[np.float16]) -> NDArray[np.float32]:
    groups = levels.reshape(*scales.shape, -1).astype(np.float32) * scales[..., None].astype(np.float32)
    return np.asarray(groups.reshape(levels.shape))


@pytest.fixture
def rows() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(8, 96)).astype(np.float32)


def test_numbers_on_the_grid_come_back_exactly() -> None:
    levels = np.array([[-8, -3, 0, 7], [1, 2, 3, -8]], np.float32)
    found, scales = round_to_int4(levels * 0.25, 4)
    assert np.array_equal(restored(found, scales), levels * 0.25)


def test_no_weight_is_off_by_more_than_a_step(rows: NDArray[np.float32]) -> None:
    levels, scales = round_to_int4(rows, 32)
    assert levels.min() >= -8 and levels.max() <= 7 and scales.shape == (8, 3)
    widest = np.abs(rows.reshape(8, 3, 32)).max(-1)
    error = np.abs(restored(levels, scales) - rows).reshape(8, 3, 32).max(-1)
    assert (error <= 0.26 * widest).all()


def test_a_group_of_zeros_stays_zero() -> None:
    levels, scales = round_to_int4(np.zeros((2, 32), np.float32), 32)
    assert not restored(levels, scales).any() and np.isfinite(scales).all()


def test_correction_makes_the_layers_output_better_than_rounding_alone(rows: NDArray[np.float32]) -> None:
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(400, 8)) @ rng.normal(size=(8, 96)) + 0.1 * rng.normal(size=(400, 96))
    plain, corrected = round_to_int4(rows, 32), correct_rounding(rows, 32, inputs.T @ inputs)
    lost = [np.square(inputs @ (restored(*made) - rows).T).sum() for made in (plain, corrected)]
    assert lost[1] < 0.5 * lost[0]


def test_inputs_that_are_always_zero_are_no_obstacle(rows: NDArray[np.float32]) -> None:
    levels, scales = correct_rounding(rows, 32, np.zeros((96, 96)))
    assert np.isfinite(restored(levels, scales)).all()
    assert np.corrcoef(restored(levels, scales).ravel(), rows.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("length, size", [(96, 32), (27, 27), (33, 11), (37, 1), (8, 8)])
def test_a_group_is_the_largest_divisor(length: int, size: int) -> None:
    assert group_size(length, 32) == size


def test_two_levels_make_a_byte_the_first_one_below() -> None:
    assert pack(np.array([[-8, 7], [1, 0]], np.int8)).tolist() == [0x78, 0x01]
    assert pack(np.array([[-1, 2, 3]], np.int8)).tolist() == [0x2F, 0x03]
