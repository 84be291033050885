"""Cases of `mil_linear`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeclip.backends.base import Array
from tests.mil import IOS16, IOS17, IOS18, mb
from tests.mil_cases.case import Case, exact, normal, weights

W, B = weights(4, 5), weights(4)
MASK = np.triu(np.full((3, 3), -10000.0), 1).astype(np.float16)
PRODUCTS = [
    Case(
        "linear",
        lambda dtype: lambda x: mb.linear(x=x, weight=W.astype(dtype), bias=B.astype(dtype)),
        lambda x: F.linear(x, exact(W), exact(B)),
        (normal(2, 3, 5),),
    ),
    Case(
        "linear",
        lambda dtype: lambda x: mb.linear(x=x, weight=W.astype(dtype)),
        lambda x: F.linear(x, exact(W)),
        (normal(3, 5),),
    ),
    Case("matmul", lambda _: lambda x, y: mb.matmul(x=x, y=y), torch.matmul, (normal(2, 3, 4, 5), normal(5, 6))),
    Case(
        "matmul",
        lambda _: lambda x, y: mb.matmul(x=x, y=y, transpose_x=True, transpose_y=True),
        lambda x, y: x.mT @ y.mT,
        (normal(2, 5, 4), normal(2, 6, 5)),
    ),
    Case(
        "einsum",
        lambda _: lambda x, y: mb.einsum(values=(x, y), equation="nchw,nwhu->nchu"),
        lambda x, y: torch.einsum("nchw,nwhu->nchu", x, y),
        (normal(1, 2, 3, 4), normal(1, 4, 3, 5)),
    ),
    Case(
        "scaled_dot_product_attention",
        lambda _: lambda q, k, v: mb.scaled_dot_product_attention(query=q, key=k, value=v),
        F.scaled_dot_product_attention,
        (normal(2, 2, 3, 4), normal(2, 2, 5, 4), normal(2, 2, 5, 6)),
        IOS18,
    ),
    Case(
        "scaled_dot_product_attention",
        lambda dtype: (
            lambda q, k, v: mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=MASK.astype(dtype))
        ),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, exact(MASK)),
        (normal(1, 3, 4), normal(1, 3, 4), normal(1, 3, 4)),
        IOS18,
    ),
    Case(
        "scaled_dot_product_attention",
        lambda _: lambda q, k, v: mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=MASK == 0),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.from_numpy(MASK == 0)),
        (normal(1, 3, 4), normal(1, 3, 4), normal(1, 3, 4)),
        IOS18,
    ),
    Case("softmax", lambda _: lambda x: mb.softmax(x=x, axis=-1), lambda x: x.softmax(-1), (normal(3, 5) * 10,)),
    Case("softmax", lambda _: lambda x: mb.softmax(x=x, axis=0), lambda x: x.softmax(0), (normal(3, 5),)),
]


def convolution(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    padding: tuple[int, ...] = (),
    opset: Any = IOS16,
    **options: Any,
) -> Case:
    """`padding` is what PyTorch is given: before and after the last axis, the one before it, and so on."""

    def build(dtype: Any) -> Callable[[Any], Any]:
        more = {} if bias is None else {"bias": bias.astype(dtype)}
        return lambda x: mb.conv(x=x, weight=weight.astype(dtype), **more, **options)

    def reference(x: Tensor) -> Tensor:
        function = F.conv1d if x.ndim == 3 else F.conv2d
        return function(
            F.pad(x, padding),
            exact(weight),
            None if bias is None else exact(bias),
            stride=options.get("strides", 1),
            dilation=options.get("dilations", 1),
            groups=options.get("groups", 1),
        )

    return Case("conv", build, reference, (x,), opset)


def pooling(op: str, reference: Callable[[Tensor], Tensor], x: Array, **options: Any) -> Case:
    return Case(op, lambda _: lambda x: getattr(mb, op)(x=x, **options), reference, (x,))


PICTURE = normal(2, 4, 7, 6)
WINDOWS = [
    convolution(PICTURE, weights(3, 4, 3, 3), weights(3), pad_type="valid"),
    convolution(PICTURE, weights(3, 4, 1, 1), strides=[2, 2], pad_type="valid"),
    convolution(
        PICTURE, weights(3, 4, 3, 3), weights(3), (1, 1, 1, 1), strides=[2, 1], pad_type="custom", pad=[1, 1, 1, 1]
    ),
    convolution(PICTURE, weights(3, 4, 3, 2), None, (2, 0, 0, 1), pad_type="custom", pad=[0, 1, 2, 0]),
    convolution(PICTURE, weights(8, 2, 3, 3), weights(8), groups=2, pad_type="valid"),
    convolution(PICTURE, weights(4, 1, 3, 3), weights(4), groups=4, pad_type="valid"),
    convolution(PICTURE, weights(3, 4, 2, 2), dilations=[2, 3], pad_type="valid"),
    convolution(PICTURE, weights(3, 4, 3, 2), None, (0, 1, 1, 1), pad_type="same"),
    convolution(PICTURE, weights(3, 4, 3, 2), None, (1, 0, 1, 1), pad_type="same_lower"),
    convolution(PICTURE, weights(3, 4, 3, 3), None, (0, 1, 1, 1), strides=[2, 2], pad_type="same"),
    convolution(normal(2, 4, 9), weights(3, 4, 3), weights(3), (1, 1), pad_type="same", opset=IOS17),
    pooling("avg_pool", lambda x: F.avg_pool2d(x, 2), PICTURE, kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid"),
    pooling(
        "avg_pool",
        lambda x: F.avg_pool2d(x, 3, 2, 1),
        PICTURE,
        kernel_sizes=[3, 3],
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
    ),
    pooling(
        "avg_pool",
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        PICTURE,
        kernel_sizes=[3, 3],
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
        exclude_padding_from_average=True,
    ),
    pooling(
        "avg_pool",
        lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
        normal(1, 2, 6, 8),
        kernel_sizes=[3, 3],
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
        ceil_mode=True,
    ),
    pooling(
        "max_pool",
        lambda x: F.max_pool2d(x, 2, 2, 1, ceil_mode=True),
        normal(1, 2, 5, 6),
        kernel_sizes=[2, 2],
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
        ceil_mode=True,
    ),
    pooling(
        "max_pool",
        lambda x: F.max_pool2d(x, 3, 2, 1),
        PICTURE - 5,
        kernel_sizes=[3, 3],
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
    ),
    pooling(
        "max_pool",
        lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True),
        PICTURE,
        kernel_sizes=[2, 2],
        strides=[2, 2],
        pad_type="valid",
        ceil_mode=True,
    ),
]


CASES = [*PRODUCTS, *WINDOWS]
