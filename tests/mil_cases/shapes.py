"""Cases of `mil_shapes`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeclip.backends.base import Array
from tests.mil import IOS16, mb
from tests.mil_cases.case import Case, integers, normal

T = normal(2, 3, 4)


def moved(op: str, reference: Callable[..., Any], x: Array, opset: Any = IOS16, **options: Any) -> Case:
    return Case(op, lambda _: lambda x: getattr(mb, op)(x=x, **options), reference, (x,), opset)


def gathered(op: str, reference: Callable[[Tensor, Tensor], Tensor], x: Array, indices: Array, **options: Any) -> Case:
    return Case(
        op, lambda _: lambda x, indices: getattr(mb, op)(x=x, indices=indices, **options), reference, (x, indices)
    )


def batched(x: Tensor, indices: Tensor) -> Tensor:
    return torch.stack([row[:, pick] for row, pick in zip(x, indices, strict=True)])


CASES = [
    moved("reshape", lambda x: x.reshape(4, 6), T, shape=[4, -1]),
    moved("reshape", lambda x: x.reshape(2, 4, 3), T, shape=[0, 4, 3]),
    moved("transpose", lambda x: x.permute(2, 0, 1), T, perm=[2, 0, 1]),
    moved("expand_dims", lambda x: x[:, None, ..., None], T, axes=[1, -1]),
    moved("squeeze", lambda x: x.squeeze(1), normal(2, 1, 3, 1), axes=[1]),
    moved("squeeze", lambda x: x.squeeze(), normal(2, 1, 3, 1)),
    moved("flatten2d", lambda x: x.reshape(6, 4), T, axis=2),
    moved("reverse", lambda x: x.flip(0, 2), T, axes=[0, 2]),
    Case(
        "concat",
        lambda _: lambda x, y: mb.concat(values=(x, y), axis=1),
        lambda x, y: torch.cat([x, y], 1),
        (T, normal(2, 2, 4)),
    ),
    Case(
        "concat",
        lambda _: lambda x, y: mb.concat(values=(x, y), axis=1, interleave=True),
        lambda x, y: torch.stack([x, y], 2).reshape(2, 6, 4),
        (T, normal(2, 3, 4)),
    ),
    Case(
        "stack",
        lambda _: lambda x, y: mb.stack(values=(x, y), axis=-1),
        lambda x, y: torch.stack([x, y], -1),
        (T, normal(2, 3, 4)),
    ),
    moved("split", lambda x: x.split(2, -1), T, num_splits=2, axis=-1),
    moved("split", lambda x: x.split((1, 2), 1), T, split_sizes=[1, 2], axis=1),
    moved("slice_by_index", lambda x: x[:1, 1:3, ::2], T, begin=[0, 1, 0], end=[1, 3, 4], stride=[1, 1, 2]),
    moved(
        "slice_by_index",
        lambda x: x[:, 1, -3:],
        T,
        begin=[5, 1, -3],
        end=[5, 2, 0],
        begin_mask=[True, False, False],
        end_mask=[True, False, True],
        squeeze_mask=[False, True, False],
    ),
    moved("slice_by_index", lambda x: x[:, :, :-1], T, begin=[0, 0, 0], end=[2, 3, -1]),
    moved("slice_by_size", lambda x: x[1:, 0:2, 1:3], T, begin=[1, 0, -3], size=[-1, 2, 2]),
    gathered("gather", lambda x, i: x[:, i], T, integers(0, 3, 2, 2), axis=1),
    gathered("gather", lambda x, i: x[i], normal(9, 4), integers(0, 9, 2, 3), axis=0),
    gathered("gather", batched, T, integers(0, 4, 2, 5), axis=2, batch_dims=1),
    gathered("gather_along_axis", lambda x, i: x.gather(1, i), T, integers(0, 3, 2, 5, 4), axis=1),
    gathered("gather_nd", lambda x, i: x[i[:, 0], i[:, 1]], T, integers(0, 2, 5, 2)),
    gathered(
        "gather_nd",
        lambda x, i: torch.stack([r[p[:, 0]] for r, p in zip(x, i, strict=True)]),
        T,
        integers(0, 3, 2, 5, 1),
        batch_dims=1,
    ),
    moved("tile", lambda x: x.repeat(2, 1, 3), T, reps=[2, 1, 3]),
    Case("shape", lambda _: lambda x: mb.shape(x=x), lambda x: torch.tensor(x.shape), (T,)),
    Case(
        "range_1d",
        lambda _: lambda x: mb.range_1d(start=mb.squeeze(x=x), end=11, step=3),
        lambda x: torch.arange(int(x), 11, 3),
        (np.array([2], np.int32),),
    ),
    Case(
        "fill",
        lambda dtype: lambda x: mb.fill(shape=mb.shape(x=x), value=dtype(1.5)),
        lambda x: torch.full(x.shape, 1.5, dtype=x.dtype),
        (T,),
    ),
    Case(
        "fill_like",
        lambda dtype: lambda x: mb.fill_like(ref_tensor=x, value=dtype(1.5)),
        lambda x: torch.full_like(x, 1.5),
        (T,),
    ),
    Case(
        "pad",
        lambda dtype: lambda x: mb.pad(x=x, pad=[1, 0, 2, 1], mode="constant", constant_val=dtype(0.5)),
        lambda x: F.pad(x, (2, 1, 1, 0), value=0.5),
        (T,),
    ),
    moved("pad", lambda x: F.pad(x, (2, 1), mode="reflect"), T, pad=[2, 1], mode="reflect"),
    moved("pad", lambda x: F.pad(x, (2, 1), mode="replicate"), T, pad=[2, 1], mode="replicate"),
    moved("band_part", lambda x: x.triu(-1).tril(0), normal(5, 5), lower=1, upper=0),
    moved("band_part", lambda x: x.tril(1), normal(5, 5), lower=-1, upper=1),
    Case(
        "one_hot",
        lambda _: lambda x: mb.one_hot(indices=x, one_hot_vector_size=5),
        lambda x: F.one_hot(x.long(), 5),
        (integers(0, 5, 2, 3),),
    ),
    Case(
        "one_hot",
        lambda dtype: (
            lambda x: mb.one_hot(indices=x, one_hot_vector_size=5, axis=0, on_value=dtype(2), off_value=dtype(0.5))
        ),
        lambda x: (F.one_hot(x.long(), 5) * 1.5 + 0.5).permute(2, 0, 1).double(),
        (integers(0, 5, 2, 3),),
    ),
]
