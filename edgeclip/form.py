"""What embeddings are returned in: their dtype, and how many of their dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from edgeclip import quantized
from edgeclip.backends.base import Array, Embeddings
from edgeclip.errors import NonFiniteError, UsageError
from edgeclip.manifest import ModelSpec
from edgeclip.quantized import Dtype

DTYPES: tuple[Dtype, ...] = get_args(Dtype)


@dataclass(frozen=True)
class Form:
    """A dtype and a number of dimensions. Made by `choose_form`."""

    dtype: Dtype
    dim: int
    embed_dim: int
    """Of the model."""

    @property
    def columns(self) -> int:
        """Of an array of embeddings: bytes where they are binary, dimensions otherwise."""
        return self.dim // 8 if self.dtype == "binary" else self.dim

    @property
    def stored(self) -> np.dtype[Any]:
        """The dtype of an array of embeddings, in little-endian order."""
        return np.dtype({"float32": "<f4", "float16": "<f2", "int8": "i1", "binary": "u1"}[self.dtype])

    @property
    def bytes_per_vector(self) -> int:
        return self.columns * self.stored.itemsize

    def described(self) -> dict[str, Any]:
        """What must be kept beside stored embeddings to read them."""
        more: dict[str, Any] = {}
        if self.dtype == "int8":
            more["scale"] = quantized.scale(self.dim)
        if self.dtype == "binary":
            more["bit_order"] = "big"
        return {"dtype": self.dtype, "dim": self.dim, **more}

    def apply(self, rows: Embeddings) -> Array:
        """Embeddings float32 [N, embed_dim], each L2-normalised, in this form, [N, columns].

        Raises:
            NonFiniteError: a row has nothing in the dimensions that are kept.
        """
        kept = rows if self.dim == self.embed_dim else truncated(rows, self.dim)
        if self.dtype == "int8":
            return quantized.to_int8(kept)
        if self.dtype == "binary":
            return quantized.to_binary(kept)
        return kept.astype(self.dtype, copy=False)

    def none(self) -> Array:
        """No embeddings, [0, columns]."""
        return np.empty((0, self.columns), self.stored)


def choose_form(spec: ModelSpec, dtype: Dtype = "float32", dim: int | None = None) -> Form:
    """The form that is asked for, where the model can give it.

    Args:
        dim: one of `spec.matryoshka`; None is all dimensions.

    Raises:
        UsageError: no such dtype, or the model was not trained for these dimensions.
    """
    if dtype not in DTYPES:
        raise UsageError(f"no dtype {dtype!r}", hint=f"one of: {', '.join(DTYPES)}")
    allowed = (*spec.matryoshka, spec.embed_dim)
    if dim is not None and dim not in allowed:
        why = "" if spec.matryoshka else "; this model was trained for all of them together"
        raise UsageError(
            f"no embeddings of {dim} dimensions from {spec.name!r}",
            hint=f"dim can be: {', '.join(map(str, allowed))}{why}",
        )
    form = Form(dtype, spec.embed_dim if dim is None else dim, spec.embed_dim)
    if dtype == "binary":
        quantized.check_binary(form.dim)
    return form


def truncated(rows: Embeddings, dim: int) -> Embeddings:
    """The first `dim` coordinates of [N, D], L2-normalised again. For models trained so that they mean something.

    Source: A. Kusupati et al., arXiv 2205.13147 (Matryoshka Representation Learning).

    Raises:
        NonFiniteError: a row has nothing in them.
    """
    kept = rows[:, :dim]
    lengths = np.linalg.norm(kept, axis=1, keepdims=True)
    if not lengths.all():
        raise NonFiniteError(f"row {int(lengths[:, 0].argmin())} is zero in its first {dim} dimensions")
    return np.asarray(kept / lengths, np.float32)
