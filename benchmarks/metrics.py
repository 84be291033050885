"""What is measured of embeddings, each with an interval, and what it lost against a reference on the same images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeclip import paired, scores
from edgeclip.backends.base import Embeddings

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
RESAMPLES = 1000
"""Bootstrap resamples of the images."""
_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Interval:
    """What holds the true value in 95 of 100 cases."""

    low: float
    high: float


@dataclass(frozen=True)
class Loss:
    """What is lost against a reference, in percentage points; positive where the reference is better."""

    drop_pt: float
    low_pt: float
    high_pt: float


Self = TypeVar("Self", bound="Metric")


class Metric(Protocol):
    """One number of one model on one data set."""

    @property
    def value(self) -> float: ...

    @property
    def n(self) -> int:
        """Images that it is of."""
        ...

    def interval(self) -> Interval: ...

    def loss(self: Self, reference: Self) -> Loss:
        """Against the same metric of another model on the same data."""
        ...


@dataclass(frozen=True)
class Share:
    """The share of images that are right."""

    right: Bools
    """[N]."""

    @property
    def value(self) -> float:
        return float(self.right.mean())

    @property
    def n(self) -> int:
        return len(self.right)

    def interval(self) -> Interval:
        """Wilson's, which has a width at 0 and 100 %, where the bootstrap has none."""
        found = scores.score("", "", self.value, self.n)
        return Interval(found.low, found.high)

    def loss(self, reference: Share) -> Loss:
        return _paired(reference.right, self.right)


@dataclass(frozen=True)
class CaptionShare:
    """The share of captions that are right; those of one image are not independent."""

    right: Bools
    """[M]."""
    owners: Ints
    """int64 [M], the image of each."""

    @property
    def value(self) -> float:
        return float(self.right.mean())

    @property
    def n(self) -> int:
        return int(self.owners.max()) + 1

    def interval(self) -> Interval:
        """By bootstrap over images, each with all its captions."""
        hits, sizes = np.bincount(self.owners, weights=self.right), np.bincount(self.owners)
        return _bootstrap(lambda drawn: float(hits[drawn].sum() / sizes[drawn].sum()), self.n)

    def loss(self, reference: CaptionShare) -> Loss:
        return _paired(reference.right, self.right, self.owners)


@dataclass(frozen=True)
class ClassRecall:
    """The share of images that are right, averaged over the classes that occur."""

    right: Bools
    """[N]."""
    labels: Ints
    """int64 [N]."""

    @property
    def value(self) -> float:
        return self._of(np.arange(self.n))

    @property
    def n(self) -> int:
        return len(self.right)

    def interval(self) -> Interval:
        """By bootstrap over images."""
        return _bootstrap(self._of, self.n)

    def loss(self, reference: ClassRecall) -> Loss:
        return _difference(reference.value - self.value, lambda drawn: reference._of(drawn) - self._of(drawn), self.n)

    def _of(self, drawn: Ints) -> float:
        labels = self.labels[drawn]
        sizes, hits = np.bincount(labels), np.bincount(labels, weights=self.right[drawn])
        return float((hits[sizes > 0] / sizes[sizes > 0]).mean())


class MeanPrecision:
    """Average precision, averaged over the classes: how far the images that have a class come before the others.

    A class that no image has counts as 0, as in CLIP_benchmark.
    """

    def __init__(self, similarity: Embeddings, truth: Bools) -> None:
        """
        Args:
            similarity: float [N, K], of each image with each class.
            truth: bool [N, K], the classes that apply.
        """
        order = (-similarity).argsort(axis=0, kind="stable")
        self._order = order
        self._truth = np.take_along_axis(truth, order, axis=0)
        self.n = len(truth)

    @property
    def value(self) -> float:
        return self._of(np.arange(self.n))

    def interval(self) -> Interval:
        """By bootstrap over images."""
        return _bootstrap(self._of, self.n)

    def loss(self, reference: MeanPrecision) -> Loss:
        return _difference(reference.value - self.value, lambda drawn: reference._of(drawn) - self._of(drawn), self.n)

    def _of(self, drawn: Ints) -> float:
        """An image that was drawn several times counts as often."""
        weights = np.bincount(drawn, minlength=self.n)[self._order]
        hits = weights * self._truth
        precision = hits.cumsum(axis=0) / np.maximum(weights.cumsum(axis=0), 1)
        return float(((precision * hits).sum(axis=0) / np.maximum(hits.sum(axis=0), 1)).mean())


def bootstrap(statistic: Callable[[Ints], float], n: int, seed: int = 0) -> Floats:
    """[RESAMPLES]: the statistic of resamples of n images, whose positions it is given.

    Args:
        seed: the same for models that are compared on the same images, another for other images.
    """
    rng = np.random.default_rng(seed)
    return np.array([statistic(rng.integers(0, n, n)) for _ in range(RESAMPLES)])


def percentiles(values: Floats) -> Interval:
    """The middle 95 of 100."""
    low, high = np.percentile(values, _PERCENTILES)
    return Interval(float(low), float(high))


def _bootstrap(statistic: Callable[[Ints], float], n: int) -> Interval:
    return percentiles(bootstrap(statistic, n))


def _difference(value: float, statistic: Callable[[Ints], float], n: int) -> Loss:
    """Both models on the same resamples."""
    found = _bootstrap(statistic, n)
    return Loss(100 * value, 100 * found.low, 100 * found.high)


def _paired(reference: Bools, candidate: Bools, groups: Ints | None = None) -> Loss:
    found = paired.drop(reference, candidate, groups=groups)
    return Loss(found.drop_pt, found.low_pt, found.high_pt)
