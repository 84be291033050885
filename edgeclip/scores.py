"""How good embeddings are: zero-shot top-1, and recall of images by captions and of captions by images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeclip.backends.base import Embeddings

RANKS = (1, 5, 10)
_Z95 = 1.959964
_CHUNK = 1 << 24
"""Similarities that are held at once: 64 MB; with what is compared beside them, under 200 MB."""


@dataclass(frozen=True)
class Score:
    """One measured share, with the interval that holds the true one in 95 of 100 cases."""

    data: str
    metric: str
    """`top1`, `image_to_text_r1` (a caption of the image is found first), `text_to_image_r1`, …"""
    value: float
    low: float
    high: float
    n: int
    """Images that were tested."""


def score(data: str, metric: str, value: float, n: int) -> Score:
    """A share of n with Wilson's interval. Captions of one image are not independent: n is the number of images.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    spread = _Z95**2 / n
    centre = (value + spread / 2) / (1 + spread)
    half = math.sqrt(value * (1 - value) * spread + spread**2 / 4) / (1 + spread)
    return Score(data, metric, value, min(value, max(0.0, centre - half)), max(value, min(1.0, centre + half)), n)


def top1(data: str, images: Embeddings, weights: Embeddings, labels: NDArray[np.int64]) -> Score:
    """The share of images whose nearest class is their own: see `classes_before`.

    Args:
        images: [N, D]; weights: [K, D], one row a class, as `zeroshot.ensemble` makes them; all L2-normalised.
        labels: int64 [N], in [0, K).
    """
    right = classes_before(images, weights, labels) == 0
    return score(data, "top1", float(right.mean()), len(images))


def retrieval(data: str, images: Embeddings, captions: Embeddings, owners: NDArray[np.int64]) -> list[Score]:
    """Recall at 1, 5 and 10 both ways.

    A tie counts as lost, and so does NaN: a model that says the same of everything finds nothing.

    Args:
        images: [N, D]; captions: [M, D].
        owners: int64 [M], the image that each caption belongs to; every image has at least one.
    """
    found = [
        ("image_to_text", texts_before(images, captions, owners)),
        ("text_to_image", images_before(images, captions, owners)),
    ]
    return [
        score(data, f"{way}_r{rank}", float((before < rank).mean()), len(images))
        for way, before in found
        for rank in RANKS
    ]


def classes_before(images: Embeddings, weights: Embeddings, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """[N]: how many classes come before each image's own. Arguments as in `top1`.

    Nearer ones do, and of equally near ones those of lower numbers, as with argmax: two classes of one name share
    their images. All do where the image's own is NaN.
    """
    before = np.empty(len(images), np.int64)
    numbers = np.arange(len(weights))
    for rows in _chunks(len(images), len(weights)):
        similarity = images[rows] @ weights.T
        own = np.take_along_axis(similarity, labels[rows, None], axis=1)
        earlier = (similarity == own) & (numbers < labels[rows, None])
        before[rows] = np.where(np.isnan(own[:, 0]), len(weights), ((similarity > own) | earlier).sum(axis=1))
    return before


def texts_before(images: Embeddings, captions: Embeddings, owners: NDArray[np.int64]) -> NDArray[np.int64]:
    """[N]: how many captions of others each image likes at least as well as the best of its own."""
    before = np.empty(len(images), np.int64)
    for rows in _chunks(len(images), len(captions)):
        similarity = images[rows] @ captions.T
        mine = owners[None, :] == np.arange(rows.start, rows.stop)[:, None]
        best = np.where(mine, similarity, -np.inf).max(axis=1, keepdims=True)
        before[rows] = (~(similarity < best) & ~mine).sum(axis=1)
    return before


def images_before(images: Embeddings, captions: Embeddings, owners: NDArray[np.int64]) -> NDArray[np.int64]:
    """[M]: how many other images each caption fits at least as well as its own."""
    before = np.empty(len(captions), np.int64)
    for rows in _chunks(len(captions), len(images)):
        similarity = captions[rows] @ images.T
        own = np.take_along_axis(similarity, owners[rows, None], axis=1)
        before[rows] = (~(similarity < own)).sum(axis=1) - 1
    return before


def _chunks(rows: int, columns: int) -> Iterator[slice]:
    """Rows whose similarities with all columns are held at once."""
    step = max(1, _CHUNK // columns)
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))
