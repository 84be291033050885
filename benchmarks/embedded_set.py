"""A data set as a model sees it: embeddings of its images and of its prompts or captions, and the right answers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeclip import zeroshot
from edgeclip.backends.base import Embeddings
from edgeclip.benchmarks.embedded_images import EmbeddedImages, embed_set
from edgeclip.benchmarks.embedding_cache import EmbeddingCache
from edgeclip.benchmarks.testdata import Data, DataSpec, open_data
from edgeclip.cli import progress

if TYPE_CHECKING:
    from edgeclip.model import Model

NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class EmbeddedSet:
    """What scores are computed from. An array that does not apply is empty."""

    images: Embeddings
    """float32 [N, D], L2-normalised."""
    weights: Embeddings
    """float32 [K, D], L2-normalised: of each class, its prompts averaged; or each caption."""
    labels: NDArray[np.int64]
    """int64 [N], the class of each image."""
    truth: NDArray[np.bool_]
    """bool [N, K], the classes that apply to each image, where there may be several."""
    owners: NDArray[np.int64]
    """int64 [K], the image that each caption belongs to."""

    @property
    def is_retrieval(self) -> bool:
        """Whether images and captions are to be found."""
        return bool(self.owners.size)

    @property
    def is_multilabel(self) -> bool:
        """Whether several classes may apply to an image."""
        return bool(self.truth.size)

    def save(self, path: Path) -> None:
        """Write to an `.npz` file."""
        np.savez(path, **{field.name: getattr(self, field.name) for field in fields(self)})

    @staticmethod
    def load(path: Path) -> EmbeddedSet:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return EmbeddedSet(**arrays)


def embed(model: Model, spec: DataSpec, advance: progress.Advance, cache: EmbeddingCache) -> EmbeddedSet:
    """Embed a data set.

    Raises:
        DataError, UsageError, ImageDecodeError: it is missing, damaged or not labelled.
        NonFiniteError: the model gave NaN, infinity or nothing.
    """
    data = open_data(spec)
    found = embed_set(model, data, advance, cache)
    return EmbeddedSet(
        images=found.images,
        weights=_weights(data, found, cache) if spec.texts else np.empty((0, 0), np.float32),
        labels=found.labels,
        truth=_truth(data, found),
        owners=found.owners,
    )


def _weights(data: Data, found: EmbeddedImages, cache: EmbeddingCache) -> Embeddings:
    if data.is_retrieval:
        return cache.texts(found.captions)
    return zeroshot.ensemble(
        cache.texts(zeroshot.prompts(data.classes, data.templates, repeats=True)), len(data.classes)
    )


def _truth(data: Data, found: EmbeddedImages) -> NDArray[np.bool_]:
    truth = np.zeros((len(found.applying), len(data.classes)), bool)
    for row, applying in zip(truth, found.applying, strict=True):
        row[list(applying)] = True
    return truth
