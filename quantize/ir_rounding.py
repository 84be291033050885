"""Rounding to 4 bits, one scale a group of weights. Plain arithmetic, of the child process only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeclip.quantize.correction import inverse_factor, round_block


def round_to_int4(rows: NDArray[np.float32], size: int) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Round float32 [O, K] in groups of `size`, the scale of each group being the best of a few.

    The largest weight lies at −8 or beyond it: to clip it a little may cost less than what the others gain.

    Returns:
        Levels in [-8, 7], int8 [O, K], and scales float16 [O, K / size], negative where the largest weight is positive.
    """
    groups = rows.reshape(len(rows), -1, size)
    widest = np.take_along_axis(groups, np.abs(groups).argmax(-1, keepdims=True), -1) / -8
    error = np.full(widest.shape, np.inf, np.float32)
    levels = np.zeros(groups.shape, np.int8)
    scales = np.ones(widest.shape, np.float16)
    for share in np.linspace(1, 0.75, 11, dtype=np.float32):
        scale = (widest * share).astype(np.float16)
        scale[scale == 0] = 1
        rounded = _levels(groups, scale)
        found = np.square(rounded * scale.astype(np.float32) - groups).sum(-1, keepdims=True)
        better = found < error
        error = np.where(better, found, error)
        levels = np.where(better, rounded, levels).astype(np.int8)
        scales = np.where(better, scale, scales)
    return levels.reshape(rows.shape), scales[..., 0]


def correct_rounding(
    rows: NDArray[np.float32], size: int, hessian: NDArray[np.float64]
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Round column by column; what a column's rounding does to the outputs is made up for by the columns after it.

    Args:
        hessian: Xᵀ·X of the inputs X [N, K] of the layer, [K, K].

    Returns:
        As `round_to_int4`.

    Source: arXiv 2210.17323, algorithm 1.
    """
    columns, factor = np.array(rows.T, np.float64, order="C"), inverse_factor(hessian)
    levels = np.zeros(rows.shape, np.int8)
    scales = np.ones((len(rows), rows.shape[1] // size), np.float16)
    for start in range(0, rows.shape[1], size):
        stop = start + size
        scale = round_to_int4(columns[start:stop].T.astype(np.float32), size)[1][:, 0]
        scales[:, start // size] = scale
        levels[:, start:stop] = round_block(columns, factor, start, stop, scale.astype(np.float64), -8, 7).T
    return levels, scales


def _levels(weights: NDArray[np.floating], scale: NDArray[np.float16]) -> NDArray[np.floating]:
    return np.clip(np.rint(weights / scale.astype(weights.dtype)), -8, 7)


def pack(levels: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two levels a byte, the first one in its lower half."""
    flat = levels.reshape(-1).astype(np.uint8) & 15
    flat = np.concatenate([flat, np.zeros(flat.size % 2, np.uint8)])
    return (flat[::2] | flat[1::2] << 4).astype(np.uint8)
