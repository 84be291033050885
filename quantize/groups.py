"""Groups of weights that share a scale, at 4 bits: equal parts of a row, which is all weights of an output channel."""

from __future__ import annotations

GROUP = 32
"""Weights of a group, at most. What every target's 4-bit weights have."""


def group_size(length: int, most: int) -> int:
    """The largest divisor of a row's length up to `most`."""
    return next(size for size in range(min(most, length), 0, -1) if length % size == 0)
