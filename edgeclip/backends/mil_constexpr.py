"""Compressed weights: operations that are carried out once, when a program is loaded.

Source: coremltools.converters.mil.mil.ops.defs, `iOS16.constexpr_ops`, `iOS17.quantization_ops`, `iOS18.compression`.
"""

from __future__ import annotations

import math

import numpy as np

from edgeclip.backends.base import Array
from edgeclip.backends.mil_elementwise import Kernel
from edgeclip.backends.mil_weights import unpacked


def affine_dequantize(quantized_data: Array, zero_point: Array, scale: Array, axis: Array) -> Array:
    """scale · (data - zero_point), of one channel along `axis` or of all."""
    at = int(axis)
    shifted = quantized_data.astype(np.float32) - _along(zero_point, quantized_data, at).astype(np.float32)
    return np.asarray(shifted * _along(scale, quantized_data, at))


def blockwise_shift_scale(data: Array, scale: Array, offset: Array | None = None) -> Array:
    """scale · (data - offset); each of them holds for a block, and blocks are as large as the shapes say."""
    shifted = data.astype(np.float32)
    if offset is not None:
        shifted = shifted - _repeated(offset, data.shape).astype(np.float32)
    return np.asarray(shifted * _repeated(scale, data.shape))


def lut_to_dense(indices: Array, lut: Array, shape: Array | None = None, vector_axis: Array | None = None) -> Array:
    """Each index' value in a look-up table.

    Of iOS 16, indices are packed bytes and `shape` says what they become. Of iOS 18, each block of indices has a table
    of its own, lut [*blocks, entries, vector], and vectors of several values are laid along `vector_axis`.
    """
    if shape is not None:
        count = math.prod(int(n) for n in shape)
        picked = lut[unpacked(indices.tobytes(), int(math.log2(len(lut))), count)]
        return np.asarray(picked.reshape([int(n) for n in shape]))
    *blocks, entries, length = lut.shape
    tables = np.arange(math.prod(blocks)).reshape(blocks)
    picked = lut.reshape(-1, entries, length)[_repeated(tables, indices.shape), indices]  # [*indices, vector]
    if length == 1:
        return np.asarray(picked[..., 0])
    if vector_axis is None:
        raise ValueError("a look-up table of vectors without vector_axis")
    at = int(vector_axis) % indices.ndim
    laid = np.moveaxis(picked, -1, at + 1)
    return np.asarray(laid.reshape(*indices.shape[:at], -1, *indices.shape[at + 1 :]))


def sparse_to_dense(nonzero_data: Array, mask: Array, shape: Array | None = None) -> Array:
    """Values where the mask is set, zeros elsewhere. Of iOS 16, the mask is packed bytes of `shape`."""
    if shape is not None:
        lengths = [int(n) for n in shape]
        mask = unpacked(mask.tobytes(), 1, math.prod(lengths)).reshape(lengths)
    dense = np.zeros(mask.shape, nonzero_data.dtype)
    dense[mask != 0] = nonzero_data
    return dense


def cast(source_val: Array, output_dtype: str) -> Array:
    """The executor brings every result to its stated type; `output_dtype` repeats that."""
    return source_val


def quantize(
    input: Array, scale: Array, output_dtype: str, zero_point: Array | None = None, axis: Array | None = None
) -> Array:
    """clip(round(input / scale) + zero_point), ties to even."""
    bounds = np.iinfo(output_dtype)
    at = None if axis is None else int(axis)
    levels = np.rint(input / _along(scale, input, at))
    if zero_point is not None:
        levels = levels + _along(zero_point, input, at).astype(np.float32)
    return np.clip(levels, bounds.min, bounds.max)


def dequantize(input: Array, scale: Array, zero_point: Array | None = None, axis: Array | None = None) -> Array:
    """scale · (input - zero_point)."""
    at = None if axis is None else int(axis)
    shifted = input.astype(np.float32)
    if zero_point is not None:
        shifted = shifted - _along(zero_point, input, at).astype(np.float32)
    return np.asarray(shifted * _along(scale, input, at))


def _along(values: Array, data: Array, axis: int | None) -> Array:
    """Values of the channels along an axis, shaped to broadcast over data; one value is of them all."""
    if values.ndim == 0 or axis is None:
        return values
    shape = [1] * data.ndim
    shape[axis] = -1
    return values.reshape(shape)


def _repeated(values: Array, shape: tuple[int, ...]) -> Array:
    """Values of blocks, each as often as its block has elements along each axis."""
    if values.ndim != len(shape) or any(n % m for n, m in zip(shape, values.shape, strict=True)):
        raise ValueError(f"blocks of shape {values.shape} do not fit data of shape {shape}")
    for axis, (whole, blocks) in enumerate(zip(shape, values.shape, strict=True)):
        if 1 < blocks < whole:
            values = np.repeat(values, whole // blocks, axis)
    return np.broadcast_to(values, shape)


KERNELS: dict[str, Kernel] = {
    "constexpr_affine_dequantize": affine_dequantize,
    "constexpr_blockwise_shift_scale": blockwise_shift_scale,
    "constexpr_lut_to_dense": lut_to_dense,
    "constexpr_sparse_to_dense": sparse_to_dense,
    "constexpr_cast": cast,
    "quantize": quantize,
    "dequantize": dequantize,
}
