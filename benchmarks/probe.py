"""A linear probe: logistic regression on the image embeddings, its regularisation chosen on held-out images.

Source: arXiv 2103.00020, appendix A.3: L-BFGS, at most 1,000 iterations, strengths from 1e-6 to 1e6 searched from a
coarse grid down to 8 steps a decade, and a last fit on training and validation images together. There the features are
those before the projection; a bundle gives what comes after it, L2-normalised.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.backends.base import Embeddings
from edgeclip.errors import DataError

Ints = NDArray[np.int64]
STEPS = 8
"""Strengths a decade."""
DECADES = (-6, 6)
COARSE = 2 * STEPS
"""Grid points between the strengths that are tried first."""
ITERATIONS = 1000
HELD_OUT = 0.2
"""Of the training images of each class, to choose the strength on."""


@dataclass(frozen=True)
class Probe:
    """A probe that was fitted."""

    strength: float
    """Of the L2 regularisation, λ."""
    trained_on: int
    """Images."""
    unfinished: bool
    """Whether the last fit stopped at the limit of iterations."""
    _model: Any

    def predict(self, images: Embeddings) -> Ints:
        """The class of each image, int64 [N]."""
        return np.asarray(self._model.predict(images), np.int64)


def fit(images: Embeddings, labels: Ints) -> Probe:
    """Fit a probe.

    Args:
        images: [N, D] of the training split; labels: int64 [N].

    Raises:
        DataError: there are fewer than two classes.
    """
    if len(np.unique(labels)) < 2:
        raise DataError("a probe needs training images of at least two classes")
    held = split(labels, HELD_OUT)

    def accuracy(strength: float) -> float:
        model, _ = _regress(images[~held], labels[~held], strength)
        return float((model.predict(images[held]) == labels[held]).mean())

    strength = search(accuracy)
    model, unfinished = _regress(images, labels, strength)
    return Probe(strength, len(images), unfinished, model)


def split(labels: Ints, share: float) -> NDArray[np.bool_]:
    """A drawn share of the images of each class, bool [N]: at least one of a class that has two; always the same.

    Raises:
        DataError: no class has two images.
    """
    rng = np.random.default_rng(0)
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        chosen[members[: max(round(share * len(members)), 1) if len(members) > 1 else 0]] = True
    if not chosen.any():
        raise DataError("no class has two images: nothing can be held out")
    return chosen


def search(accuracy: Callable[[float], float]) -> float:
    """The strength of the best accuracy: a coarse grid, then ever finer around its peak. Of equals the strongest."""
    known: dict[int, float] = {}
    last = STEPS * (DECADES[1] - DECADES[0])
    step, tried = COARSE, list(range(0, last + 1, COARSE))
    while step:
        for i in tried:
            if 0 <= i <= last and i not in known:
                known[i] = accuracy(_strength(i))
        peak = max(known, key=lambda i: (known[i], i))
        step //= 2
        tried = [peak - step, peak + step]
    return _strength(peak)


def strengths() -> Iterator[float]:
    """All that `search` may try."""
    return map(_strength, range(STEPS * (DECADES[1] - DECADES[0]) + 1))


def _strength(i: int) -> float:
    return float(10.0 ** (DECADES[0] + i / STEPS))


def _regress(images: Embeddings, labels: Ints, strength: float) -> tuple[Any, bool]:
    """The fitted model, and whether it stopped at the limit of iterations."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1 / strength, solver="lbfgs", max_iter=ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the limit is the paper's; what came of it is reported
        model.fit(images.astype(np.float64), labels)
    return model, bool(np.max(model.n_iter_) >= ITERATIONS)
