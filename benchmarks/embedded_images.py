"""A test set's images, embedded, with what is said of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeclip.backends.base import Embeddings
from edgeclip.benchmarks.embedding_cache import EmbeddingCache, chunks
from edgeclip.benchmarks.testdata import Data
from edgeclip.cli import progress
from edgeclip.errors import DataError
from edgeclip.testset import Sample

if TYPE_CHECKING:
    from edgeclip.model import Model


@dataclass(frozen=True)
class EmbeddedImages:
    """The images of a test set in float32, and its labels or captions."""

    images: Embeddings
    """[N, D]."""
    labels: NDArray[np.int64]
    """int64 [N]; empty where there are captions, or several classes an image."""
    captions: list[str]
    """Of all images, image by image; empty where there are labels."""
    owners: NDArray[np.int64]
    """int64 [M], the image that each caption belongs to."""
    applying: list[tuple[int, ...]]
    """Of each image, the classes that apply, where there may be several; empty elsewhere."""


def embed_set(
    model: Model,
    data: Data,
    advance: progress.Advance = lambda amount: None,
    cache: EmbeddingCache | None = None,
) -> EmbeddedImages:
    """Embed the images of a test set, in one pass over it.

    Args:
        advance: told of each chunk, how many images it had.
        cache: of the same model; None embeds everything.

    Raises:
        DataError: the set is damaged, or has no image.
        ImageDecodeError: naming the image.
    """
    keep = cache or EmbeddingCache(model, enabled=False)
    rows: list[Embeddings] = []
    seen: list[Sample] = []
    for chunk in chunks(data, lambda sample: len(sample.image)):
        rows.append(keep.images(chunk))
        seen += [Sample(one.key, b"", one.label, one.captions, one.applying) for one in chunk]
        advance(len(chunk))
    if not rows:
        raise DataError(f"{data.name}: no samples")
    return _described(np.concatenate(rows), seen)


def _described(images: Embeddings, seen: Sequence[Sample]) -> EmbeddedImages:
    return EmbeddedImages(
        images=images,
        labels=np.array([one.label for one in seen if one.label is not None], np.int64),
        captions=[caption for one in seen for caption in one.captions],
        owners=np.repeat(np.arange(len(seen)), [len(one.captions) for one in seen]),
        applying=[one.applying for one in seen if one.applying is not None],
    )
