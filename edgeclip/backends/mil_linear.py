"""Operations that multiply and add many values: matrix products, convolutions, attention, pooling.

Products are accumulated in float32 by NumPy's BLAS, whatever the stated type; a result is rounded once.

Source: coremltools.converters.mil.mil.ops.defs, `linear`, `conv`, `pool`, `transformers`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from edgeclip.backends.base import Array
from edgeclip.backends.mil_elementwise import Kernel

Pads = list[tuple[int, int]]


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """x [..., K], weight [M, K], bias [M] to [..., M]."""
    rows = x.reshape(-1, x.shape[-1]) @ weight.T
    if bias is not None:
        rows += bias
    return np.asarray(rows.reshape(*x.shape[:-1], len(weight)))


def matmul(x: Array, y: Array, transpose_x: Array | bool = False, transpose_y: Array | bool = False) -> Array:
    """x [..., M, K], y [..., K, N] to [..., M, N]; leading axes broadcast."""
    left = np.swapaxes(x, -1, -2) if transpose_x and x.ndim > 1 else x
    right = np.swapaxes(y, -1, -2) if transpose_y and y.ndim > 1 else y
    return np.asarray(left @ right)


def einsum(values: Sequence[Array], equation: str) -> Array:
    return np.asarray(np.einsum(equation, *values, optimize=True))


def scaled_dot_product_attention(query: Array, key: Array, value: Array, attn_mask: Array | None = None) -> Array:
    """query [..., L, E], key [..., S, E], value [..., S, V] to [..., L, V]. Nothing is rounded in between."""
    scores = (query / np.float32(math.sqrt(query.shape[-1]))) @ np.swapaxes(key, -1, -2)
    if attn_mask is not None:
        scores = np.where(attn_mask, scores, -np.inf) if attn_mask.dtype == np.bool_ else scores + attn_mask
    return np.asarray(softmax(scores) @ value)


def softmax(x: Array, axis: Array | int = -1) -> Array:
    powers = np.exp(x - x.max(axis=int(axis), keepdims=True))
    return np.asarray(powers / powers.sum(axis=int(axis), keepdims=True))


def conv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    strides: Array | None = None,
    pad_type: str = "valid",
    pad: Array | None = None,
    dilations: Array | None = None,
    groups: Array | int = 1,
) -> Array:
    """x [N, C, *D], weight [M, C / groups, *K], bias [M] to [N, M, *D']."""
    axes = x.ndim - 2
    steps, holes = _list(strides, [1] * axes), _list(dilations, [1] * axes)
    reach = [(k - 1) * hole + 1 for k, hole in zip(weight.shape[2:], holes, strict=True)]
    padded = _pad(x, _pads(pad_type, pad, x.shape[2:], reach, steps))
    windows = _windows(padded, reach, steps, holes)  # [N, C, *D', *K]
    out = _convolve(windows, weight, int(groups))
    if bias is not None:
        out += bias.reshape(-1, *[1] * axes)
    return out


def _convolve(windows: Array, weight: Array, groups: int) -> Array:
    """Windows [N, C, *D', *K] by weight [M, C / groups, *K] to [N, M, *D'], one matrix product a group."""
    axes = weight.ndim - 2
    batch, channels, *rest = windows.shape
    spatial, kernel = rest[:axes], rest[axes:]
    order = (0, 1, *range(2 + axes, 2 + 2 * axes), *range(2, 2 + axes))
    columns = windows.transpose(order).reshape(
        batch, groups, channels // groups * math.prod(kernel), math.prod(spatial)
    )
    filters = weight.reshape(groups, len(weight) // groups, -1)
    return np.asarray((filters @ columns).reshape(batch, len(weight), *spatial))


def avg_pool(
    x: Array,
    kernel_sizes: Array,
    strides: Array | None = None,
    pad_type: str = "valid",
    pad: Array | None = None,
    exclude_padding_from_average: Array | bool = False,
    ceil_mode: Array | bool = False,
) -> Array:
    """x [N, C, *D] to the mean of each window, [N, C, *D']."""
    sizes, steps, pads, overhang = _pooling(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    counted = np.ones(x.shape[2:], np.float32)[None, None]
    if not exclude_padding_from_average:
        counted = _pad(counted, pads, 1.0)
        counted = _pad(counted, overhang)
    else:
        counted = _pad(_pad(counted, pads), overhang)
    sums = _sums(_pad(_pad(x, pads), overhang), sizes, steps)
    return np.asarray(sums / _sums(counted, sizes, steps))


def max_pool(
    x: Array,
    kernel_sizes: Array,
    strides: Array | None = None,
    pad_type: str = "valid",
    pad: Array | None = None,
    ceil_mode: Array | bool = False,
) -> Array:
    """x [N, C, *D] to the largest of each window, [N, C, *D']. Padding is never the largest."""
    sizes, steps, pads, overhang = _pooling(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    padded = _pad(_pad(x, pads, -np.inf), overhang, -np.inf)
    windows = _windows(padded, sizes, steps, [1] * len(sizes))
    return np.asarray(windows.max(axis=tuple(range(x.ndim, 2 * x.ndim - 2))))


def _sums(x: Array, sizes: list[int], steps: list[int]) -> Array:
    windows = _windows(x, sizes, steps, [1] * len(sizes))
    return np.asarray(windows.sum(axis=tuple(range(x.ndim, 2 * x.ndim - 2))))


def _pooling(
    x: Array, kernel_sizes: Array, strides: Array | None, pad_type: str, pad: Array | None, ceil_mode: Array | bool
) -> tuple[list[int], list[int], Pads, Pads]:
    """Sizes, steps, padding, and the room that the last window needs beyond it where sizes are rounded up."""
    sizes = _list(kernel_sizes, [])
    steps = _list(strides, [1] * len(sizes))
    pads = _pads(pad_type, pad, x.shape[2:], sizes, steps)
    over = [0] * len(sizes)
    if ceil_mode:
        over = [_overhang(*axis) for axis in zip(x.shape[2:], sizes, steps, pads, strict=True)]
    return sizes, steps, pads, [(0, n) for n in over]


def _overhang(length: int, size: int, step: int, pads: tuple[int, int]) -> int:
    whole = length + sum(pads)
    count = -(-(whole - size) // step) + 1
    if (count - 1) * step >= length + pads[0] and sum(pads) > 0:
        count -= 1  # a window must begin inside the input or the padding before it
    return max(0, (count - 1) * step + size - whole)


def _windows(x: Array, reach: Sequence[int], steps: Sequence[int], holes: Sequence[int]) -> Array:
    """A view of [N, C, *D], [N, C, *D', *K]."""
    axes = tuple(range(2, x.ndim))
    view = sliding_window_view(x, tuple(reach), axis=axes)
    moves = tuple(slice(None, None, step) for step in steps)
    within = tuple(slice(None, None, hole) for hole in holes)
    return view[(slice(None), slice(None), *moves, *within)]


def _pads(
    kind: str, pad: Array | None, lengths: Sequence[int], reach: Sequence[int], steps: Sequence[int]
) -> list[tuple[int, int]]:
    """Before and after each spatial axis."""
    if kind == "valid":
        return [(0, 0)] * len(lengths)
    if kind == "custom":
        flat = _list(pad, [0] * 2 * len(lengths))
        return list(pairwise(flat))[::2]
    if kind not in ("same", "same_lower"):
        raise ValueError(f"padding of type {kind!r}")
    pads = []
    for length, size, step in zip(lengths, reach, steps, strict=True):
        total = max(0, (-(-length // step) - 1) * step + size - length)
        less, more = total // 2, total - total // 2
        pads.append((less, more) if kind == "same" else (more, less))
    return pads


def _pad(x: Array, pads: Pads, value: float = 0.0) -> Array:
    if not any(map(any, pads)):
        return x
    return np.pad(x, [(0, 0), (0, 0), *pads], constant_values=value)


def _list(values: Array | None, default: list[int]) -> list[int]:
    return default if values is None else [int(v) for v in values]


KERNELS: dict[str, Kernel] = {
    "linear": linear,
    "matmul": matmul,
    "einsum": einsum,
    "scaled_dot_product_attention": scaled_dot_product_attention,
    "softmax": softmax,
    "conv": conv,
    "avg_pool": avg_pool,
    "max_pool": max_pool,
}
