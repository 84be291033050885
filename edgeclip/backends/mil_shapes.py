"""Operations that move values and compute none: reshaping, slicing, gathering, joining.

Source: coremltools.converters.mil.mil.ops.defs, `tensor_operation`, `tensor_transformation`, `scatter_gather`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeclip.backends.base import Array
from edgeclip.backends.mil_elementwise import Kernel

_ZERO = np.float32(0)


def reshape(x: Array, shape: Array) -> Array:
    """A length of -1 is what is left over; 0 is that of the same axis of x."""
    wanted = [x.shape[i] if n == 0 and len(shape) == x.ndim else int(n) for i, n in enumerate(shape)]
    return x.reshape(wanted)


def transpose(x: Array, perm: Array) -> Array:
    return x.transpose([int(axis) for axis in perm])


def expand_dims(x: Array, axes: Array) -> Array:
    return np.expand_dims(x, tuple(int(axis) for axis in axes))


def squeeze(x: Array, axes: Array | None = None) -> Array:
    return np.squeeze(x, None if axes is None else tuple(int(axis) for axis in axes))


def flatten2d(x: Array, axis: Array | int = 1) -> Array:
    return x.reshape(int(np.prod(x.shape[: int(axis)])), -1)


def reverse(x: Array, axes: Array | None = None) -> Array:
    return np.flip(x, None if axes is None else tuple(int(axis) for axis in axes))


def concat(values: Sequence[Array], axis: Array, interleave: Array | bool = False) -> Array:
    joined = [np.atleast_1d(value) for value in values]
    if not interleave:
        return np.concatenate(joined, axis=int(axis))
    at = int(axis) % joined[0].ndim
    shape = joined[0].shape
    return np.stack(joined, axis=at + 1).reshape(*shape[:at], -1, *shape[at + 1 :])


def stack(values: Sequence[Array], axis: Array) -> Array:
    return np.stack(values, axis=int(axis))


def split(
    x: Array, axis: Array, num_splits: Array | None = None, split_sizes: Array | None = None
) -> tuple[Array, ...]:
    if split_sizes is not None:
        return tuple(np.split(x, np.cumsum(split_sizes)[:-1], axis=int(axis)))
    if num_splits is None:
        raise ValueError("split without a number or sizes")
    return tuple(np.split(x, int(num_splits), axis=int(axis)))


def slice_by_index(
    x: Array,
    begin: Array,
    end: Array,
    stride: Array | None = None,
    begin_mask: Array | None = None,
    end_mask: Array | None = None,
    squeeze_mask: Array | None = None,
) -> Array:
    """Where a mask is set, an axis is taken from its beginning, to its end, or at `begin` alone."""
    index: list[slice | int] = []
    for axis in range(x.ndim):
        first = None if _set(begin_mask, axis) else int(begin[axis])
        if _set(squeeze_mask, axis):
            index.append(first or 0)
            continue
        last = None if _set(end_mask, axis) else int(end[axis])
        index.append(slice(first, last, None if stride is None else int(stride[axis])))
    return np.asarray(x[tuple(index)])


def slice_by_size(x: Array, begin: Array, size: Array) -> Array:
    """A size of -1 is all that is left."""
    index = []
    for first, length, whole in zip(begin, size, x.shape, strict=True):
        start = int(first) % whole if first < 0 else int(first)
        index.append(slice(start, whole if length < 0 else start + int(length)))
    return x[tuple(index)]


def gather(
    x: Array,
    indices: Array,
    axis: Array | int = 0,
    batch_dims: Array | int = 0,
    validate_indices: Array | bool = False,
) -> Array:
    """x [*B, *D, n, *E], indices [*B, *I] to [*B, *D, *I, *E]; `batch_dims` axes B are shared."""
    shared, at = int(batch_dims), int(axis) % x.ndim
    if shared == 0:
        return np.take(x, indices, axis=at)
    lead = x.shape[:shared]
    rows = x.reshape(-1, *x.shape[shared:])
    chosen = indices.reshape(len(rows), *indices.shape[shared:])
    taken = [np.take(row, pick, axis=at - shared) for row, pick in zip(rows, chosen, strict=True)]
    return np.stack(taken).reshape(*lead, *taken[0].shape)


def gather_along_axis(x: Array, indices: Array, axis: Array | int = 0, validate_indices: Array | bool = False) -> Array:
    return np.take_along_axis(x, indices.astype(np.intp), axis=int(axis))


def gather_nd(x: Array, indices: Array, batch_dims: Array | int = 0, validate_indices: Array | bool = False) -> Array:
    """x [*B, *D, *E], indices [*B, *I, len(D)] to [*B, *I, *E]."""
    shared = int(batch_dims)
    if shared == 0:
        return np.asarray(x[tuple(np.moveaxis(indices, -1, 0))])
    lead = x.shape[:shared]
    rows = x.reshape(-1, *x.shape[shared:])
    chosen = indices.reshape(len(rows), *indices.shape[shared:])
    taken = [np.asarray(r[tuple(np.moveaxis(i, -1, 0))]) for r, i in zip(rows, chosen, strict=True)]
    return np.stack(taken).reshape(*lead, *taken[0].shape)


def tile(x: Array, reps: Array) -> Array:
    return np.tile(x, [int(n) for n in reps])


def shape(x: Array) -> Array:
    return np.array(x.shape, np.int32)


def range_1d(start: Array, end: Array, step: Array) -> Array:
    return np.arange(float(start), float(end), float(step))


def fill(shape: Array, value: Array | np.float32 = _ZERO) -> Array:
    return np.full([int(n) for n in shape], value)


def fill_like(ref_tensor: Array, value: Array | np.float32 = _ZERO) -> Array:
    return np.full(ref_tensor.shape, value)


def pad(x: Array, pad: Array, mode: str = "constant", constant_val: Array | float = 0.0) -> Array:
    """Before and after each of the last len(pad) / 2 axes."""
    pairs = np.asarray(pad).reshape(-1, 2).tolist()
    widths = [(0, 0)] * (x.ndim - len(pairs)) + [(first, last) for first, last in pairs]
    if mode == "constant":
        return np.pad(x, widths, constant_values=float(constant_val))
    if mode == "reflect":
        return np.pad(x, widths, mode="reflect")
    if mode == "replicate":
        return np.pad(x, widths, mode="edge")
    raise ValueError(f"padding of mode {mode!r}")


def band_part(x: Array, lower: Array | int = -1, upper: Array | int = -1) -> Array:
    """Keep the diagonals of the last two axes from `lower` below the main one to `upper` above; -1 keeps all."""
    kept = x
    if lower >= 0:
        kept = np.triu(kept, -int(lower))
    return np.tril(kept, int(upper)) if upper >= 0 else kept


def one_hot(
    indices: Array,
    one_hot_vector_size: Array,
    axis: Array | int = -1,
    on_value: Array | int = 1,
    off_value: Array | int = 0,
) -> Array:
    hot = np.arange(int(one_hot_vector_size)) == indices[..., None]
    return np.moveaxis(np.where(hot, on_value, off_value), -1, int(axis))


def _set(mask: Array | None, axis: int) -> bool:
    return mask is not None and bool(mask[axis])


KERNELS: dict[str, Kernel] = {
    "reshape": reshape,
    "transpose": transpose,
    "expand_dims": expand_dims,
    "squeeze": squeeze,
    "flatten2d": flatten2d,
    "reverse": reverse,
    "concat": concat,
    "stack": stack,
    "split": split,
    "slice_by_index": slice_by_index,
    "slice_by_size": slice_by_size,
    "gather": gather,
    "gather_along_axis": gather_along_axis,
    "gather_nd": gather_nd,
    "tile": tile,
    "shape": shape,
    "range_1d": range_1d,
    "fill": fill,
    "fill_like": fill_like,
    "pad": pad,
    "band_part": band_part,
    "one_hot": one_hot,
}
