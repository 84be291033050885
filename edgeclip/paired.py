"""What one model loses against another on the same samples, with intervals that heed the pairing.

Two models are right on almost the same samples. Only those that one gets right and the other wrong say anything about
the difference, so that it is known far more closely than either score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeclip.backends.base import Embeddings
from edgeclip.errors import NonFiniteError

Right = NDArray[np.bool_]
_Z_TWO_SIDED = 1.959964
_Z_ONE_SIDED = 1.644854
_STEPS = 60
"""Of bisection: more than a double can tell apart."""
_PRIOR = 2.0
"""Lost samples that are taken to have come with the rest of their group, beside those that were seen."""


@dataclass(frozen=True)
class Drop:
    """A loss, in percentage points: positive where the candidate is worse."""

    drop_pt: float
    low_pt: float
    high_pt: float
    """The two-sided 95 % interval."""
    high_one_sided_pt: float
    """The loss is below this in 95 of 100 cases."""
    n: int
    lost: int
    """Samples that the reference alone gets right."""
    won: int
    """Samples that the candidate alone gets right."""


def samples_needed(loss_pt: float) -> int:
    """By how many samples, none of them lost, the one-sided bound of a loss is at most `loss_pt`."""
    z2 = _Z_ONE_SIDED**2
    return math.ceil(z2 * (100 / loss_pt - 1))  # without a flip, Tango's bound is z² / (n + z²)


def drop(reference: Right, candidate: Right, *, groups: NDArray[np.int64] | None = None) -> Drop:
    """The paired difference of two models' correctness.

    The bounds are Tango's score intervals. They have a width where no sample differs, and keep their coverage where a
    few samples are lost and none won, where adjusted Wald intervals fall short (0.86 at 2 of 1,000).

    Args:
        reference, candidate: bool [n], which samples each gets right.
        groups: int [n], equal where samples are not independent, as the captions of one image are: the intervals are
            then widened by how much more alike the flips within a group are.

    Raises:
        ValueError: the vectors differ in length or are empty.

    Source: T. Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design", Statistics in Medicine 17 (1998). The choice among intervals: M. W. Fagerland, S. Lydersen, P. Laake,
    "Recommended tests and confidence intervals for paired binomial proportions", Statistics in Medicine 33 (2014).
    """
    if reference.shape != candidate.shape or reference.ndim != 1 or not reference.size:
        raise ValueError(f"correctness of {list(reference.shape)} and {list(candidate.shape)} samples")
    flips = reference.astype(np.int64) - candidate.astype(np.int64)
    n, lost, won = len(flips), int((flips > 0).sum()), int((flips < 0).sum())
    alike = 1.0 if groups is None else _design_effect(flips, groups)
    counts = lost / alike, won / alike, n / alike
    return Drop(
        drop_pt=100 * (lost - won) / n,
        low_pt=-100 * _upper((counts[1], counts[0], counts[2]), _Z_TWO_SIDED),
        high_pt=100 * _upper(counts, _Z_TWO_SIDED),
        high_one_sided_pt=100 * _upper(counts, _Z_ONE_SIDED),
        n=n,
        lost=lost,
        won=won,
    )


def _upper(counts: tuple[float, float, float], z: float) -> float:
    """The largest difference that a score test at z does not refuse."""
    lost, won, n = counts
    low, high = (lost - won) / n, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _is_refused(lost, won, n, middle, z):
            high = middle
        else:
            low = middle
    return high


def _is_refused(lost: float, won: float, n: float, difference: float, z: float) -> bool:
    """Whether a true difference above the observed one lies more than z standard errors off it.

    The standard error is that under the difference in question, with the likeliest share of won samples.
    """
    linear = (2 * n - lost + won) * difference - lost - won
    root = np.sqrt(max(0.0, linear**2 + 8 * n * won * difference * (1 - difference)))
    share_won = (root - linear) / (4 * n)
    variance = n * (2 * share_won + difference * (1 - difference))
    return bool(n * difference - (lost - won) > z * np.sqrt(max(variance, 0.0)))


def _design_effect(flips: NDArray[np.int64], groups: NDArray[np.int64]) -> float:
    """How many samples say as much as one independent sample, from 1 to the mean size of a group.

    The ratio of the variance between groups to that of independent samples; few flips tell little of it, so that some
    are added which took their whole group with them.

    Source: L. Kish, "Survey Sampling" (1965), for the design effect.
    """
    _, member = np.unique(groups, return_inverse=True)
    count = int(member.max()) + 1
    size = len(flips) / count
    off = flips - flips.mean()
    between = float((np.bincount(member, weights=off) ** 2).sum()) * count / max(count - 1, 1)
    ratio = (between + _PRIOR * size) / (float((off**2).sum()) + _PRIOR)
    return float(np.clip(ratio, 1.0, size))


@dataclass(frozen=True)
class Cosines:
    """How near rows of embeddings are to their reference."""

    mean: float
    p1: float
    """The first percentile: one row of a hundred is further off."""
    min: float


def cosines(embeddings: Embeddings, reference: Embeddings) -> Cosines:
    """Cosines of the rows of two float [N, D].

    Raises:
        NonFiniteError: a row has NaN or infinity.
        ValueError: the shapes differ.
    """
    if embeddings.shape != reference.shape:
        raise ValueError(f"embeddings are {embeddings.shape}, the reference is {reference.shape}")
    bad = [int((~np.isfinite(rows).all(axis=1)).sum()) for rows in (embeddings, reference)]
    if any(bad):
        raise NonFiniteError(f"{max(bad)} of {len(embeddings)} embeddings have NaN or infinity")
    one, other = (_unit(rows) for rows in (embeddings, reference))
    found = (one * other).sum(axis=1)
    return Cosines(*(_digits(value) for value in (found.mean(), np.percentile(found, 1), found.min())))


def _unit(rows: Embeddings) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12))


def _digits(value: float) -> float:
    return float(f"{float(value):.8g}")
