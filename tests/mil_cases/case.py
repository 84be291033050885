"""A case: an operation of ML programs, as a small program, and the same in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeclip.backends.base import Array
from tests.mil import IOS16

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


def channels(values: Array, x: Tensor) -> Tensor:
    return exact(values).reshape(-1, *[1] * (x.ndim - 2))
