"""Every operation of the Core ML reference, as a small program, against PyTorch: in fp32 and in fp16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeclip.backends.base import Array
from edgeclip.backends.mil_ops import KERNELS
from tests import mil
from tests.mil import FLOATS, IOS16, IOS17, IOS18, mb

RNG = np.random.default_rng(0)


@dataclass(frozen=True)
class Case:
    """A program of one operation."""

    op: str
    build: Callable[[Any], Callable[..., Any]]
    """From the float type under test to a block, from variables to variables."""
    reference: Callable[..., Any]
    """The same in PyTorch, of float64 and integer tensors."""
    inputs: tuple[Array, ...]
    opset: Any = IOS16
    ulps: float = 4
    """Of float32 at the largest value of a result: what sums, and functions that are approximated, may be off."""

    def __str__(self) -> str:
        return self.op


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape)


def positive(*shape: int) -> Array:
    return RNG.uniform(0.1, 3, shape)


def integers(low: int, high: int, *shape: int) -> Array:
    return RNG.integers(low, high, shape, dtype=np.int32)


def weights(*shape: int) -> Array:
    """Constants that both float types can hold."""
    return RNG.standard_normal(shape).astype(np.float16)


def exact(values: Array) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float64 if values.dtype.kind == "f" else None))


def unary(op: str, reference: Callable[[Tensor], Tensor], x: Array, ulps: float = 4, **options: Any) -> Case:
    def build(dtype: Any) -> Callable[[Any], Any]:
        typed = {name: dtype(value) if isinstance(value, float) else value for name, value in options.items()}
        return lambda x: getattr(mb, op)(x=x, **typed)

    return Case(op, build, reference, (x,), ulps=ulps)


def binary(op: str, reference: Callable[[Tensor, Tensor], Tensor], x: Array, y: Array, ulps: float = 4) -> Case:
    return Case(op, lambda _: lambda x, y: getattr(mb, op)(x=x, y=y), reference, (x, y), ulps=ulps)


X = normal(3, 5) * 2
SMALL = RNG.uniform(-0.9, 0.9, (3, 5))
UNARY = [
    unary("abs", torch.abs, X),
    unary("acos", torch.acos, SMALL),
    unary("asin", torch.asin, SMALL),
    unary("atan", torch.atan, X),
    unary("ceil", torch.ceil, X),
    unary("cos", torch.cos, X),
    unary("cosh", torch.cosh, X),
    unary("erf", torch.erf, np.linspace(-7, 7, 501), ulps=0.2),
    unary("exp", torch.exp, X),
    unary("exp2", torch.exp2, X),
    unary("floor", torch.floor, X),
    unary("round", torch.round, np.array([-2.5, -0.5, 0.5, 1.5, 1.4, 2.6])),
    unary("sign", torch.sign, np.array([-2.0, 0.0, 3.0])),
    unary("sin", torch.sin, X),
    unary("sinh", torch.sinh, X),
    unary("sqrt", torch.sqrt, positive(4, 4)),
    unary("square", torch.square, X),
    unary("tan", torch.tan, SMALL),
    unary("tanh", torch.tanh, X),
    unary("clip", lambda x: x.clip(-1, 1.5), X, alpha=-1.0, beta=1.5),
    unary("inverse", lambda x: 1 / (x + 0.25), positive(3, 3), epsilon=0.25),
    unary("log", lambda x: torch.log(x + 0.25), positive(3, 3), epsilon=0.25),
    unary("rsqrt", lambda x: torch.rsqrt(x + 0.25), positive(3, 3), epsilon=0.25),
    unary("threshold", lambda x: x.clamp(min=0.5), X, alpha=0.5),
    unary("identity", lambda x: x, X),
    unary("relu", F.relu, X),
    unary("relu6", F.relu6, X * 4),
    unary("sigmoid", torch.sigmoid, np.linspace(-15, 15, 101)),
    unary("silu", F.silu, X),
    unary("softplus", F.softplus, X),
    unary("softsign", F.softsign, X),
    unary("gelu", F.gelu, np.linspace(-5, 5, 301), mode="EXACT"),
    unary("gelu", lambda x: F.gelu(x, approximate="tanh"), X, mode="TANH_APPROXIMATION"),
    unary("gelu", lambda x: x * torch.sigmoid(1.702 * x), X, mode="SIGMOID_APPROXIMATION"),
    unary("leaky_relu", lambda x: F.leaky_relu(x, 0.25), X, alpha=0.25),
    unary("elu", lambda x: F.elu(x, 0.5), X, alpha=0.5),
    unary("clamped_relu", lambda x: F.leaky_relu(x, 0.25).clamp(max=1.5), X, alpha=0.25, beta=1.5),
    unary("linear_activation", lambda x: 1.5 * x + 0.5, X, alpha=1.5, beta=0.5),
    unary("scaled_tanh", lambda x: 1.5 * torch.tanh(0.5 * x), X, alpha=1.5, beta=0.5),
    unary("sigmoid_hard", lambda x: (0.25 * x + 0.5).clip(0, 1), X, alpha=0.25, beta=0.5),
    unary("thresholded_relu", lambda x: F.threshold(x, 0.5, 0), X, alpha=0.5),
    Case(
        "prelu",
        lambda dtype: lambda x: mb.prelu(x=x, alpha=np.array([0.25, 0.5, 2], dtype)),
        lambda x: F.prelu(x, torch.tensor([0.25, 0.5, 2], dtype=x.dtype)),
        (normal(2, 3, 4, 2),),
    ),
]

Y = normal(3, 1)
WHOLE, OTHER = integers(-9, 9, 2, 3), integers(1, 5, 2, 3)
BINARY = [
    binary("add", torch.add, X, Y),
    binary("sub", torch.sub, X, Y),
    binary("mul", torch.mul, X, Y),
    binary("real_div", torch.div, X, positive(3, 1)),
    binary("floor_div", torch.floor_divide, X * 4, positive(3, 1)),
    binary("mod", torch.remainder, X * 4, positive(3, 1)),
    binary("pow", torch.pow, positive(3, 5), Y),
    binary("maximum", torch.maximum, X, Y),
    binary("minimum", torch.minimum, X, Y),
    binary("equal", torch.eq, np.round(X), np.round(Y)),
    binary("not_equal", torch.ne, np.round(X), np.round(Y)),
    binary("greater", torch.gt, X, Y),
    binary("greater_equal", torch.ge, np.round(X), np.round(Y)),
    binary("less", torch.lt, X, Y),
    binary("less_equal", torch.le, np.round(X), np.round(Y)),
    binary("add", torch.add, WHOLE, OTHER),
    binary("floor_div", torch.floor_divide, WHOLE, OTHER),
    binary("mod", torch.remainder, WHOLE, OTHER),
    binary("real_div", lambda x, y: torch.div(x, y, rounding_mode="trunc"), np.abs(WHOLE), OTHER),
]


def logical(op: str) -> Case:
    return Case(
        op,
        lambda dtype: lambda x, y: getattr(mb, op)(x=mb.greater(x=x, y=dtype(0)), y=mb.less(x=y, y=dtype(0))),
        lambda x, y: getattr(torch, op)(x > 0, y < 0),
        (normal(4, 4), normal(4, 4)),
    )


CHOICES = [
    logical("logical_and"),
    logical("logical_or"),
    logical("logical_xor"),
    Case(
        "logical_not",
        lambda dtype: lambda x: mb.logical_not(x=mb.greater(x=x, y=dtype(0))),
        lambda x: ~(x > 0),
        (X,),
    ),
    Case(
        "select",
        lambda dtype: lambda x, y: mb.select(cond=mb.greater(x=x, y=dtype(0)), a=x, b=y),
        lambda x, y: torch.where(x > 0, x, y),
        (X, normal(3, 5)),
    ),
    Case("cast", lambda _: lambda x: mb.cast(x=x, dtype="int32"), lambda x: x.trunc().int(), (X,)),
    Case("cast", lambda _: lambda x: mb.cast(x=x, dtype="bool"), lambda x: x.bool(), (np.array([0.0, 0.5, -2.0]),)),
    Case("cast", lambda _: lambda x: mb.cast(x=x, dtype="fp16"), lambda x: x.half(), (X,)),
    Case("cast", lambda _: lambda x: mb.cast(x=x, dtype="fp32"), lambda x: x.float(), (X,)),
    Case("cast", lambda _: lambda x: mb.cast(x=x, dtype="fp32"), lambda x: x.float(), (WHOLE,)),
]

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
    Case("softmax", lambda _: lambda x: mb.softmax(x=x, axis=-1), lambda x: x.softmax(-1), (X * 5,)),
    Case("softmax", lambda _: lambda x: mb.softmax(x=x, axis=0), lambda x: x.softmax(0), (X,)),
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

G, H = weights(5), weights(5)
C, D = weights(4), weights(4)
MEAN, VARIANCE = weights(4), np.abs(weights(4)) + np.float16(0.5)


def channels(values: Array, x: Tensor) -> Tensor:
    return exact(values).reshape(-1, *[1] * (x.ndim - 2))


def instance_norm(x: Tensor) -> Tensor:
    return F.instance_norm(x, weight=exact(C), bias=exact(D), eps=0.125)


NORMS = [
    Case(
        "layer_norm",
        lambda dtype: (
            lambda x: mb.layer_norm(x=x, axes=[-1], gamma=G.astype(dtype), beta=H.astype(dtype), epsilon=dtype(0.125))
        ),
        lambda x: F.layer_norm(x, (5,), exact(G), exact(H), 0.125),
        (X,),
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


def moved(op: str, reference: Callable[..., Any], x: Array, opset: Any = IOS16, **options: Any) -> Case:
    return Case(op, lambda _: lambda x: getattr(mb, op)(x=x, **options), reference, (x,), opset)


def gathered(op: str, reference: Callable[[Tensor, Tensor], Tensor], x: Array, indices: Array, **options: Any) -> Case:
    return Case(
        op, lambda _: lambda x, indices: getattr(mb, op)(x=x, indices=indices, **options), reference, (x, indices)
    )


def batched(x: Tensor, indices: Tensor) -> Tensor:
    return torch.stack([row[:, pick] for row, pick in zip(x, indices, strict=True)])


SHAPES = [
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

LEVELS = RNG.integers(-128, 128, (4, 6), dtype=np.int8)
SCALES = (np.abs(weights(4)) / 16 + np.float16(0.01)).astype(np.float16)
ZEROS = RNG.integers(-9, 9, 4, dtype=np.int8)
NIBBLES = RNG.integers(-8, 8, (4, 6)).astype(np.int8)
BLOCKS = weights(4, 2)
PALETTE = weights(16)
PICKS = RNG.integers(0, 16, (4, 6)).astype(np.uint8)
SPARSE = RNG.integers(0, 2, (4, 6)).astype(np.uint8)
KEPT = weights(int(SPARSE.sum()))


def packed(values: Array, bits: int) -> Array:
    """As coremltools packs them: lowest bits first."""
    from coremltools.optimize._utils import pack_elements_into_bits

    found: Array = pack_elements_into_bits(values.reshape(-1), bits)
    return found


def constant(op: str, build: Callable[[Any], Any], reference: Callable[[], Tensor], opset: Any = IOS16) -> Case:
    """A compressed constant, times ones: nothing but constants would be no program."""
    return Case(
        op, lambda dtype: lambda x: mb.mul(x=x, y=build(dtype)), lambda x: x * reference(), (np.ones((4, 6)),), opset
    )


def dense() -> Tensor:
    whole = torch.zeros(4, 6, dtype=torch.float64)
    whole[torch.from_numpy(SPARSE != 0)] = exact(KEPT)
    return whole


def small(values: Array, kind: str) -> Array:
    """Integers of less than eight bits, as coremltools marks them."""
    return values.astype(mil.types.nptype_from_builtin(mil.types.string_to_builtin(kind)))


COMPRESSED = [
    constant(
        "constexpr_affine_dequantize",
        lambda dtype: mb.constexpr_affine_dequantize(
            quantized_data=LEVELS, zero_point=ZEROS, scale=SCALES.astype(dtype), axis=0
        ),
        lambda: (exact(LEVELS.astype(float)) - exact(ZEROS.astype(float))[:, None]) * exact(SCALES)[:, None],
    ),
    constant(
        "constexpr_affine_dequantize",
        lambda dtype: mb.constexpr_affine_dequantize(
            quantized_data=LEVELS.view(np.uint8), zero_point=np.uint8(7), scale=dtype(0.125), axis=1
        ),
        lambda: (exact(LEVELS.view(np.uint8).astype(float)) - 7) * 0.125,
    ),
    constant(
        "constexpr_lut_to_dense",
        lambda dtype: mb.constexpr_lut_to_dense(
            indices=packed(PICKS, 4), lut=PALETTE.astype(dtype), shape=np.array([4, 6], np.uint32)
        ),
        lambda: exact(PALETTE)[torch.from_numpy(PICKS).long()],
    ),
    constant(
        "constexpr_lut_to_dense",
        lambda dtype: mb.constexpr_lut_to_dense(
            indices=packed(PICKS * 4, 6), lut=np.repeat(PALETTE, 4).astype(dtype), shape=np.array([4, 6], np.uint32)
        ),
        lambda: exact(PALETTE)[torch.from_numpy(PICKS).long()],
    ),
    constant(
        "constexpr_sparse_to_dense",
        lambda dtype: mb.constexpr_sparse_to_dense(
            nonzero_data=KEPT.astype(dtype), mask=packed(SPARSE, 1), shape=np.array([4, 6], np.uint32)
        ),
        dense,
    ),
    Case(
        "constexpr_cast",
        lambda _: (
            lambda x: mb.add(x=mb.cast(x=x, dtype="fp32"), y=mb.constexpr_cast(source_val=BLOCKS, output_dtype="fp32"))
        ),
        lambda x: (x + exact(BLOCKS)).float(),
        (normal(4, 2),),
    ),
    constant(
        "constexpr_blockwise_shift_scale",
        lambda dtype: mb.constexpr_blockwise_shift_scale(data=small(NIBBLES, "int4"), scale=BLOCKS.astype(dtype)),
        lambda: exact(NIBBLES.astype(float)) * exact(BLOCKS).repeat_interleave(3, 1),
        IOS18,
    ),
    constant(
        "constexpr_blockwise_shift_scale",
        lambda dtype: mb.constexpr_blockwise_shift_scale(
            data=LEVELS, scale=SCALES[:, None].astype(dtype), offset=ZEROS[:, None]
        ),
        lambda: (exact(LEVELS.astype(float)) - exact(ZEROS.astype(float))[:, None]) * exact(SCALES)[:, None],
        IOS18,
    ),
    constant(
        "constexpr_lut_to_dense",
        lambda dtype: mb.constexpr_lut_to_dense(
            indices=small(PICKS % 4, "uint2"), lut=PALETTE[:8].reshape(2, 1, 4, 1).astype(dtype)
        ),
        lambda: torch.stack([exact(PALETTE)[p % 4 + 4 * (i // 2)] for i, p in enumerate(torch.tensor(PICKS).long())]),
        IOS18,
    ),
    constant(
        "constexpr_lut_to_dense",
        lambda dtype: mb.constexpr_lut_to_dense(
            indices=small(PICKS[:2] % 2, "uint1"), lut=PALETTE[:4].reshape(1, 1, 2, 2).astype(dtype), vector_axis=0
        ),
        lambda: exact(PALETTE[:4]).reshape(2, 2)[torch.tensor(PICKS[:2] % 2).long()].permute(0, 2, 1).reshape(4, 6),
        IOS18,
    ),
    constant(
        "constexpr_sparse_to_dense",
        lambda dtype: mb.constexpr_sparse_to_dense(nonzero_data=KEPT.astype(dtype), mask=small(SPARSE, "uint1")),
        dense,
        IOS18,
    ),
]

STEPS = np.array([0.5, 0.25, 2], np.float16)
POINTS = np.array([3, 0, 250], np.uint8)
ROUNDING = [
    Case(
        "quantize",
        lambda dtype: lambda x: mb.quantize(input=x, scale=dtype(0.5), output_dtype="int8"),
        lambda x: (x / 0.5).round().clip(-128, 127).to(torch.int8),
        (np.array([0.25, 0.75, -0.25, 3.1, 99, -99]),),
        IOS17,
    ),
    Case(
        "quantize",
        lambda dtype: (
            lambda x: mb.quantize(input=x, scale=STEPS.astype(dtype), zero_point=POINTS, output_dtype="uint8", axis=1)
        ),
        lambda x: ((x / channels(STEPS, x)).round() + channels(POINTS, x)).clip(0, 255).to(torch.uint8),
        (normal(2, 3, 4) * 9,),
        IOS17,
    ),
    Case(
        "dequantize",
        lambda dtype: (
            lambda x: mb.dequantize(
                input=mb.quantize(input=x, scale=dtype(0.125), output_dtype="uint8"),
                scale=STEPS.astype(dtype),
                zero_point=POINTS,
                axis=1,
            )
        ),
        lambda x: ((x / 0.125).round().clip(0, 255) - channels(POINTS, x)) * channels(STEPS, x),
        (normal(2, 3, 4) * 9,),
        IOS17,
    ),
]

CASES = [*UNARY, *BINARY, *CHOICES, *PRODUCTS, *WINDOWS, *NORMS, *REDUCTIONS, *SHAPES, *COMPRESSED, *ROUNDING]


@pytest.mark.parametrize("float_type", FLOATS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_operation_agrees_with_pytorch(case: Case, float_type: str, tmp_path: Path) -> None:
    dtype = FLOATS[float_type]
    inputs = [x.astype(dtype) if x.dtype.kind == "f" else x for x in case.inputs]
    found = mil.run(case.build(dtype), inputs, case.opset, tmp_path)
    expected = case.reference(*(exact(x) if x.dtype.kind == "f" else torch.from_numpy(x).long() for x in inputs))
    wanted = expected if isinstance(expected, tuple) else (expected,)
    assert len(found) == len(wanted)
    for got, want in zip(found, wanted, strict=True):
        compare(got, want, dtype, case.ulps)


def compare(got: Array, want: Tensor, dtype: Any, ulps: float) -> None:
    """Integers are equal; floats are of their type, and the nearest number of it but for errors of float32."""
    assert got.shape == tuple(want.shape)
    if not want.dtype.is_floating_point:
        assert got.dtype.kind in "iub"
        np.testing.assert_array_equal(got, want.numpy())
        return
    kept = {torch.float16: np.float16, torch.float32: np.float32}.get(want.dtype, dtype)
    precise = want.double().numpy()
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, got.astype(kept).astype(np.float32))
    error = np.finfo(np.float32).eps * ulps * np.abs(precise).max()
    nearest = np.spacing(np.abs(precise).astype(kept)).astype(np.float64) / 2
    assert (np.abs(got - precise) <= nearest + error).all(), np.abs(got - precise).max()


def test_every_operation_has_a_case() -> None:
    assert {case.op for case in CASES} == set(KERNELS)
