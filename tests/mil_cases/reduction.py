"""Cases of `mil_reduction`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from edgeclip.backends.base import Array
from tests.mil import mb
from tests.mil_cases.case import Case, exact, integers, normal, weights

PICTURE = normal(2, 4, 7, 6)
WHOLE = integers(-9, 9, 2, 3)
G, H = weights(5), weights(5)
C, D = weights(4), weights(4)
MEAN, VARIANCE = weights(4), np.abs(weights(4)) + np.float16(0.5)


def instance_norm(x: Tensor) -> Tensor:
    return F.instance_norm(x, weight=exact(C), bias=exact(D), eps=0.125)


NORMS = [
    Case(
        "layer_norm",
        lambda dtype: (
            lambda x: mb.layer_norm(x=x, axes=[-1], gamma=G.astype(dtype), beta=H.astype(dtype), epsilon=dtype(0.125))
        ),
        lambda x: F.layer_norm(x, (5,), exact(G), exact(H), 0.125),
        (normal(3, 5) * 2,),
    ),
    Case(
        "layer_norm",
        lambda dtype: lambda x: mb.layer_norm(x=x, axes=[1, 2], epsilon=dtype(0.125)),
        lambda x: F.layer_norm(x, (3, 4), eps=0.125),
        (normal(2, 3, 4),),
    ),
    Case(
        "batch_norm",
        lambda dtype: (
            lambda x: mb.batch_norm(
                x=x,
                mean=MEAN.astype(dtype),
                variance=VARIANCE.astype(dtype),
                gamma=C.astype(dtype),
                beta=D.astype(dtype),
                epsilon=dtype(0.125),
            )
        ),
        lambda x: F.batch_norm(x, exact(MEAN), exact(VARIANCE), exact(C), exact(D), eps=0.125),
        (PICTURE,),
    ),
    Case(
        "instance_norm",
        lambda dtype: (
            lambda x: mb.instance_norm(x=x, gamma=C.astype(dtype), beta=D.astype(dtype), epsilon=dtype(0.125))
        ),
        instance_norm,
        (PICTURE,),
    ),
    Case(
        "l2_norm",
        lambda dtype: lambda x: mb.l2_norm(x=x, epsilon=dtype(0.125)),
        lambda x: x / (x.square().sum((1, 2, 3), keepdim=True) + 0.125).sqrt(),
        (PICTURE,),
    ),
]


def reduction(op: str, reference: Callable[[Tensor], Tensor], x: Array, **options: Any) -> Case:
    return Case(op, lambda _: lambda x: getattr(mb, op)(x=x, **options), reference, (x,))


T = normal(2, 3, 4)
EQUALS = np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 0.0]])
REDUCTIONS = [
    reduction("reduce_argmax", lambda x: x.argmax(-1), EQUALS, axis=-1),
    reduction("reduce_argmax", lambda x: x.argmax(1, keepdim=True), T, axis=1, keep_dims=True),
    reduction("reduce_argmin", lambda x: x.argmin(0), T, axis=0),
    reduction("reduce_max", lambda x: x.amax((1, 2)), T, axes=[1, 2]),
    reduction("reduce_max", lambda x: x.amax(-1, keepdim=True), WHOLE, axes=[-1], keep_dims=True),
    reduction("reduce_mean", lambda x: x.mean((-1, -2), keepdim=True), T, axes=[-1, -2], keep_dims=True),
    reduction("reduce_min", lambda x: x.amin(0), T, axes=[0]),
    reduction("reduce_prod", lambda x: x.prod(1), T, axes=[1]),
    reduction("reduce_sum", lambda x: x.sum(-1, keepdim=True), T, axes=[-1], keep_dims=True),
    reduction("reduce_sum", lambda x: x.sum(1).int(), WHOLE, axes=[1]),
    reduction("reduce_l1_norm", lambda x: x.abs().sum(1), T, axes=[1]),
    reduction("reduce_l2_norm", lambda x: x.norm(dim=-1, keepdim=True), T, axes=[-1], keep_dims=True),
    reduction("reduce_sum_square", lambda x: x.square().sum((0, 2)), T, axes=[0, 2]),
    reduction("reduce_log_sum_exp", lambda x: x.logsumexp(1), T * 20, axes=[1]),
    reduction("reduce_log_sum_exp", lambda x: x.logsumexp(1, keepdim=True), T, axes=[1], keep_dims=True),
    reduction("cumsum", lambda x: x.cumsum(1), T, axis=1),
    reduction("cumsum", lambda x: x.flip(0).cumsum(0).flip(0) - x, T, axis=0, exclusive=True, reverse=True),
]


CASES = [*NORMS, *REDUCTIONS]
