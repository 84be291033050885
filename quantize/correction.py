"""Rounding column by column: what a column's rounding does to a layer's outputs is made up for by the columns after it.

Plain arithmetic. Source: arXiv 2210.17323, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

DAMPING = 0.1
"""Share of the mean of the Hessian's diagonal that is added to it, as in NNCF. Measured at 4 bits: 0.01 is worse."""
SAMPLES = 64
"""Inputs of a tower that rounding is corrected on, at most."""
_BLOCK = 32
"""Columns whose errors are passed on to the rest at once."""


def round_rows(
    rows: NDArray[np.floating], scales: NDArray[np.floating], hessian: NDArray[np.float64], largest: int
) -> NDArray[np.int8]:
    """Round a layer's weights, one scale for each output.

    Args:
        rows: [O, K].
        scales: [O].
        hessian: Xᵀ·X of the inputs X [N, K] of the layer, [K, K].
        largest: codes lie in [-largest, largest].
    """
    columns, factor = np.array(rows.T, np.float64, order="C"), inverse_factor(hessian)
    codes = np.empty(columns.shape, np.int8)
    for start in range(0, len(columns), _BLOCK):
        stop = min(start + _BLOCK, len(columns))
        codes[start:stop] = round_block(columns, factor, start, stop, scales.astype(np.float64), -largest, largest)
    return np.ascontiguousarray(codes.T)


def round_block(
    columns: NDArray[np.float64],
    factor: NDArray[np.float64],
    start: int,
    stop: int,
    scales: NDArray[np.float64],
    low: int,
    high: int,
) -> NDArray[np.int8]:
    """Round some columns of a layer's weights, and change those after them.

    Args:
        columns: [K, O], changed from `start` on.
        factor: `inverse_factor` of the layer's Hessian.
        scales: [O].

    Returns:
        Codes in [low, high], int8 [stop - start, O].
    """
    codes = np.empty((stop - start, columns.shape[1]), np.int8)
    errors = np.empty(codes.shape)
    for k in range(start, stop):
        codes[k - start] = np.clip(np.rint(columns[k] / scales), low, high)
        errors[k - start] = (columns[k] - codes[k - start] * scales) / factor[k, k]
        columns[k:stop] -= factor[k, k:stop, None] * errors[k - start]
    columns[stop:] -= factor[start:stop, stop:].T @ errors
    return codes


def inverse_factor(hessian: NDArray[np.float64]) -> NDArray[np.float64]:
    """The upper triangular U with Uᵀ·U = H⁻¹, of the damped Hessian."""
    from scipy import linalg

    damped = hessian.copy()
    diagonal = np.diagonal(damped)
    # Where the inputs are always zero nothing can be learnt: any positive number does.
    damped[np.diag_indices_from(damped)] += DAMPING * float(diagonal.mean()) or 1.0
    # H = R·Rᵀ with an upper triangular R, which is a Cholesky factor from the other end; so U is its inverse.
    reversed_ = damped[::-1, ::-1]
    upper = np.linalg.cholesky(reversed_)[::-1, ::-1]
    return np.asarray(linalg.solve_triangular(upper, np.eye(len(upper)), check_finite=False))


def unfold(
    images: NDArray[np.float32],
    kernel: Sequence[int],
    strides: Sequence[int],
    begin: Sequence[int],
    end: Sequence[int],
) -> NDArray[np.float32]:
    """The inputs X of a convolution as if it were a product: [B, I, H, W] to [positions, I·h·w].

    Args:
        begin, end: zeros on either side of both axes.
    """
    padded = np.pad(images, [(0, 0), (0, 0), *zip(begin, end, strict=True)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, tuple(kernel), axis=(2, 3))
    down, across = strides
    rows = windows[:, :, ::down, ::across].transpose(0, 2, 3, 1, 4, 5)
    return rows.reshape(-1, images.shape[1] * kernel[0] * kernel[1])
