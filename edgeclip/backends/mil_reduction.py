"""Operations that take many values together: sums, means, extremes, normalisation. Accumulated in float32.

Source: coremltools.converters.mil.mil.ops.defs, `reduction`, `normalization`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgeclip.backends.base import Array
from edgeclip.backends.mil_elementwise import Kernel


def layer_norm(
    x: Array,
    axes: Array | None = None,
    gamma: Array | None = None,
    beta: Array | None = None,
    epsilon: Array | float = 1e-5,
) -> Array:
    over = _axes(axes) or tuple(range(x.ndim))
    centred = x - x.mean(axis=over, keepdims=True)
    variance = np.square(centred).mean(axis=over, keepdims=True)
    shape = [n if i in {a % x.ndim for a in over} else 1 for i, n in enumerate(x.shape)]
    return _affine(centred / np.sqrt(variance + epsilon), gamma, beta, shape)


def batch_norm(
    x: Array,
    mean: Array,
    variance: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    epsilon: Array | float = 1e-5,
) -> Array:
    """x [N, C, *D], everything else [C]."""
    shape = [-1, *[1] * (x.ndim - 2)]
    scale = 1 / np.sqrt(variance + epsilon)
    return _affine((x - mean.reshape(shape)) * scale.reshape(shape), gamma, beta, shape)


def instance_norm(
    x: Array, gamma: Array | None = None, beta: Array | None = None, epsilon: Array | float = 1e-5
) -> Array:
    """x [N, C, *D], each channel of each row by its own mean and variance."""
    over = tuple(range(2, x.ndim))
    centred = x - x.mean(axis=over, keepdims=True)
    variance = np.square(centred).mean(axis=over, keepdims=True)
    return _affine(centred / np.sqrt(variance + epsilon), gamma, beta, [-1, *[1] * (x.ndim - 2)])


def l2_norm(x: Array, epsilon: Array | float = 1e-6) -> Array:
    """Over the last three axes."""
    return np.asarray(x / np.sqrt(np.square(x).sum(axis=(-3, -2, -1), keepdims=True) + epsilon))


def reduce_argmax(x: Array, axis: Array | int = -1, keep_dims: Array | bool = False, output_dtype: str = "") -> Array:
    """The first of equals."""
    return np.asarray(np.argmax(x, axis=int(axis), keepdims=bool(keep_dims)))


def reduce_argmin(x: Array, axis: Array | int = -1, keep_dims: Array | bool = False, output_dtype: str = "") -> Array:
    """The first of equals."""
    return np.asarray(np.argmin(x, axis=int(axis), keepdims=bool(keep_dims)))


def cumsum(x: Array, axis: Array | int = 0, exclusive: Array | bool = False, reverse: Array | bool = False) -> Array:
    ordered = np.flip(x, int(axis)) if reverse else x
    sums = np.cumsum(ordered, axis=int(axis), dtype=x.dtype)
    if exclusive:
        sums = sums - ordered
    return np.asarray(np.flip(sums, int(axis)) if reverse else sums)


def _affine(x: Array, gamma: Array | None, beta: Array | None, shape: list[int]) -> Array:
    scaled = x if gamma is None else x * gamma.reshape(shape)
    return np.asarray(scaled if beta is None else scaled + beta.reshape(shape))


def _axes(axes: Array | None) -> tuple[int, ...] | None:
    return None if axes is None else tuple(int(axis) for axis in axes)


def _log_sum_exp(x: Array, axis: tuple[int, ...] | None, keepdims: bool) -> Array:
    largest = x.max(axis=axis, keepdims=True)
    sums = np.log(np.exp(x - largest).sum(axis=axis, keepdims=True)) + largest
    return np.asarray(sums if keepdims else np.squeeze(sums, axis=axis))


def _reduction(function: Callable[..., Any]) -> Kernel:
    def kernel(x: Array, axes: Array | None = None, keep_dims: Array | bool = False) -> Array:
        return np.asarray(function(x, axis=_axes(axes), keepdims=bool(keep_dims)))

    return kernel


KERNELS: dict[str, Kernel] = {
    "layer_norm": layer_norm,
    "batch_norm": batch_norm,
    "instance_norm": instance_norm,
    "l2_norm": l2_norm,
    "reduce_argmax": reduce_argmax,
    "reduce_argmin": reduce_argmin,
    "cumsum": cumsum,
    "reduce_max": _reduction(np.max),
    "reduce_mean": _reduction(np.mean),
    "reduce_min": _reduction(np.min),
    "reduce_prod": _reduction(lambda x, **options: np.prod(x, dtype=x.dtype, **options)),
    "reduce_sum": _reduction(lambda x, **options: np.sum(x, dtype=x.dtype, **options)),
    "reduce_l1_norm": _reduction(lambda x, **options: np.abs(x).sum(dtype=x.dtype, **options)),
    "reduce_l2_norm": _reduction(lambda x, **options: np.sqrt(np.square(x).sum(dtype=x.dtype, **options))),
    "reduce_sum_square": _reduction(lambda x, **options: np.square(x).sum(dtype=x.dtype, **options)),
    "reduce_log_sum_exp": _reduction(_log_sum_exp),
}
