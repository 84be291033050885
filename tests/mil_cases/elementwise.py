"""Cases of `mil_elementwise`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeclip.backends.base import Array
from tests.mil import mb
from tests.mil_cases.case import RNG, Case, integers, normal, positive


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


CASES = [*UNARY, *BINARY, *CHOICES]
