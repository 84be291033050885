"""How closely an engine's embeddings agree with the fp32 reference, and the bounds they must keep."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeclip.backends.base import Array, Embeddings
from edgeclip.errors import NonFiniteError
from edgeclip.manifest import Compute, Precision


@dataclass(frozen=True)
class Bounds:
    """What an artifact must reach on the golden inputs."""

    cosine_mean: float
    cosine_min: float
    max_abs: float
    """Largest difference of a single coordinate of two unit vectors."""
    top1_agreement: float


# Rounding alone gives: fp32 cosine 1 − 1e-6, fp16 and bf16 1 − 1e-4 at depth 12; int8 depends on the model.
BOUNDS: dict[Precision, Bounds] = {
    "fp32": Bounds(cosine_mean=0.99995, cosine_min=0.9999, max_abs=2e-3, top1_agreement=1.0),
    "fp16": Bounds(cosine_mean=0.9995, cosine_min=0.999, max_abs=1e-2, top1_agreement=0.9),
    "w8a16": Bounds(cosine_mean=0.995, cosine_min=0.99, max_abs=5e-2, top1_agreement=0.9),
    "w8a8": Bounds(cosine_mean=0.97, cosine_min=0.95, max_abs=0.15, top1_agreement=0.8),
    "w6a16": Bounds(cosine_mean=0.99, cosine_min=0.98, max_abs=0.1, top1_agreement=0.9),
    "w4a16": Bounds(cosine_mean=0.95, cosine_min=0.9, max_abs=0.2, top1_agreement=0.8),
}


@dataclass(frozen=True)
class Agreement:
    """Measured agreement of [N, D] embeddings with their reference."""

    n: int
    cosine_mean: float
    cosine_min: float
    max_abs: float
    top1_agreement: float
    """Share of rows whose nearest reference row is their own, in [0, 1]; constant vectors score 1/N."""

    def failures(self, bounds: Bounds) -> list[str]:
        """The bounds that are broken, each as `cosine min 0.91 < 0.999`."""
        checks = [
            ("cosine mean", self.cosine_mean, bounds.cosine_mean),
            ("cosine min", self.cosine_min, bounds.cosine_min),
            ("top-1 agreement", self.top1_agreement, bounds.top1_agreement),
        ]
        broken = [f"{name} {value:.6g} < {bound:g}" for name, value, bound in checks if not value >= bound]
        return broken + ([f"max abs {self.max_abs:.3g} > {bounds.max_abs:g}"] if self.max_abs > bounds.max_abs else [])


def bounds_for(precision: Precision, compute: Compute = "f32") -> Bounds:
    """The bounds of a precision; arithmetic in bf16 or f16 loosens fp32 to fp16's."""
    return BOUNDS["fp16" if precision == "fp32" and compute != "f32" else precision]


def measure(embeddings: Embeddings, reference: Embeddings) -> Agreement:
    """Compare rows, both float32 [N, D], the reference L2-normalised.

    Raises:
        NonFiniteError: a row has NaN or infinity.
    """
    if embeddings.shape != reference.shape:
        raise ValueError(f"embeddings are {embeddings.shape}, the reference is {reference.shape}")
    bad = int((~np.isfinite(embeddings).all(axis=1)).sum())
    if bad:
        raise NonFiniteError(f"{bad} of {len(embeddings)} golden embeddings have NaN or infinity")
    wide = embeddings.astype(np.float64)
    cosines = (_unit(wide) * _unit(reference.astype(np.float64))).sum(axis=1)
    nearest = np.argmax(_unit(wide) @ reference.T.astype(np.float64), axis=1)
    return Agreement(
        n=len(embeddings),
        cosine_mean=_digits(cosines.mean()),
        cosine_min=_digits(cosines.min()),
        max_abs=_digits(np.abs(wide - reference).max()),
        top1_agreement=_digits((nearest == np.arange(len(embeddings))).mean()),
    )


def _unit(rows: Array) -> Array:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def _digits(value: float) -> float:
    """Eight digits: enough for every bound, few enough to be stable between runs."""
    return float(f"{float(value):.8g}")
