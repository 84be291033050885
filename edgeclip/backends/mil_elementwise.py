"""Operations on each value by itself. Floats are float32; the executor rounds what is returned to the stated type.

Source: coremltools.converters.mil.mil.ops.defs, `elementwise_unary`, `elementwise_binary`, `activation`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from edgeclip.backends.base import Array
from edgeclip.backends.mil_weights import Constant

Kernel = Callable[..., Array | tuple[Array, ...]]


def _erf_table() -> tuple[Array, Array]:
    grid = np.arange(0, _ERF_END + _ERF_STEP, _ERF_STEP)
    return np.array([math.erf(x) for x in grid]), 2 / math.sqrt(math.pi) * np.exp(-grid * grid)


_ERF_STEP, _ERF_END = 1 / 64, 6.0
_ERF, _ERF_SLOPE = _erf_table()


def erf(x: Array) -> Array:
    """The error function to 1e-9: Taylor's series of third order about the nearest of a grid of known values."""
    size = np.fmin(np.abs(x).astype(np.float64), _ERF_END)
    near = np.rint(size / _ERF_STEP).astype(np.intp)
    at = near * _ERF_STEP
    step = size - at
    series = step * (1 - step * (at - step * (2 * at * at - 1) / 3))
    found = np.copysign(_ERF[near] + _ERF_SLOPE[near] * series, x).astype(np.float32)
    return np.where(np.isnan(x), x, found)


def gelu(x: Array, mode: str = "EXACT") -> Array:
    if mode == "EXACT":
        return np.asarray(x * 0.5 * (1 + erf(x * math.sqrt(0.5))))
    if mode == "TANH_APPROXIMATION":
        return np.asarray(x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    if mode == "SIGMOID_APPROXIMATION":
        return x * sigmoid(1.702 * x)
    raise ValueError(f"gelu of mode {mode!r}")


def sigmoid(x: Array) -> Array:
    small = np.exp(-np.abs(x))  # never overflows
    return np.asarray(np.where(x >= 0, 1, small) / (1 + small))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def softplus(x: Array) -> Array:
    return np.logaddexp(x, np.zeros_like(x))


def softsign(x: Array) -> Array:
    return np.asarray(x / (1 + np.abs(x)))


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def relu6(x: Array) -> Array:
    return np.clip(x, 0, 6)


def leaky_relu(x: Array, alpha: Array) -> Array:
    return np.where(x >= 0, x, alpha * x)


def elu(x: Array, alpha: Array) -> Array:
    return np.where(x >= 0, x, alpha * np.expm1(np.minimum(x, 0)))


def prelu(x: Array, alpha: Array) -> Array:
    """`alpha` is of the channels, axis 1."""
    return np.where(x >= 0, x, alpha.reshape(-1, *[1] * (x.ndim - 2)) * x)


def clamped_relu(x: Array, alpha: Array, beta: Array) -> Array:
    return np.minimum(leaky_relu(x, alpha), beta)


def linear_activation(x: Array, alpha: Array, beta: Array) -> Array:
    return np.asarray(alpha * x + beta)


def scaled_tanh(x: Array, alpha: Array, beta: Array) -> Array:
    return np.asarray(alpha * np.tanh(beta * x))


def sigmoid_hard(x: Array, alpha: Array, beta: Array) -> Array:
    return np.asarray(np.clip(alpha * x + beta, 0, 1))


def thresholded_relu(x: Array, alpha: Array) -> Array:
    return np.where(x >= alpha, x, np.zeros_like(x))


def threshold(x: Array, alpha: Array) -> Array:
    return np.maximum(x, alpha)


def clip(x: Array, alpha: Array, beta: Array) -> Array:
    return np.clip(x, alpha, beta)


def inverse(x: Array, epsilon: Array | float = 1e-4) -> Array:
    return 1 / (x + epsilon)


def log(x: Array, epsilon: Array | float = 1e-45) -> Array:
    return np.log(x + epsilon)


def rsqrt(x: Array, epsilon: Array | float = 1e-12) -> Array:
    return 1 / np.sqrt(x + epsilon)


def real_div(x: Array, y: Array) -> Array:
    """Of integers too; the executor cuts off their quotients' fractions."""
    return np.true_divide(x, y)


def cast(x: Array, dtype: Constant) -> Array:
    """The executor brings every result to its stated type; `dtype` repeats that."""
    return np.asarray(x)


def identity(x: Array) -> Array:
    return np.asarray(x)


def select(cond: Array, a: Array, b: Array) -> Array:
    return np.where(cond, a, b)


def _unary(function: Callable[[Array], Array]) -> Kernel:
    def kernel(x: Array) -> Array:
        return np.asarray(function(x))

    return kernel


def _binary(function: Callable[[Array, Array], Array]) -> Kernel:
    def kernel(x: Array, y: Array) -> Array:
        return np.asarray(function(x, y))

    return kernel


KERNELS: dict[str, Kernel] = {
    "abs": _unary(np.abs),
    "acos": _unary(np.arccos),
    "asin": _unary(np.arcsin),
    "atan": _unary(np.arctan),
    "ceil": _unary(np.ceil),
    "cos": _unary(np.cos),
    "cosh": _unary(np.cosh),
    "exp": _unary(np.exp),
    "exp2": _unary(np.exp2),
    "floor": _unary(np.floor),
    "logical_not": _unary(np.logical_not),
    "round": _unary(np.rint),
    "sign": _unary(np.sign),
    "sin": _unary(np.sin),
    "sinh": _unary(np.sinh),
    "sqrt": _unary(np.sqrt),
    "square": _unary(np.square),
    "tan": _unary(np.tan),
    "tanh": _unary(np.tanh),
    "erf": erf,
    "clip": clip,
    "inverse": inverse,
    "log": log,
    "rsqrt": rsqrt,
    "threshold": threshold,
    "cast": cast,
    "identity": identity,
    "gelu": gelu,
    "sigmoid": sigmoid,
    "silu": silu,
    "softplus": softplus,
    "softsign": softsign,
    "relu": relu,
    "relu6": relu6,
    "leaky_relu": leaky_relu,
    "elu": elu,
    "prelu": prelu,
    "clamped_relu": clamped_relu,
    "linear_activation": linear_activation,
    "scaled_tanh": scaled_tanh,
    "sigmoid_hard": sigmoid_hard,
    "thresholded_relu": thresholded_relu,
    "add": _binary(np.add),
    "sub": _binary(np.subtract),
    "mul": _binary(np.multiply),
    "real_div": real_div,
    "floor_div": _binary(np.floor_divide),
    "mod": _binary(np.mod),
    "pow": _binary(np.power),
    "maximum": _binary(np.maximum),
    "minimum": _binary(np.minimum),
    "equal": _binary(np.equal),
    "not_equal": _binary(np.not_equal),
    "greater": _binary(np.greater),
    "greater_equal": _binary(np.greater_equal),
    "less": _binary(np.less),
    "less_equal": _binary(np.less_equal),
    "logical_and": _binary(np.logical_and),
    "logical_or": _binary(np.logical_or),
    "logical_xor": _binary(np.logical_xor),
    "select": select,
}
