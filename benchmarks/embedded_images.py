"""A test set's images, embedded, with what is said of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeclip.backends.base import Embeddings
from edgeclip.cli import progress
from edgeclip.errors import ImageDecodeError, ImageTooLargeError
from edgeclip.testset import TestSet

if TYPE_CHECKING:
    from edgeclip.model import Model

BATCH = 64


@dataclass(frozen=True)
class EmbeddedImages:
    """The images of a test set in float32, and its labels or captions."""

    images: Embeddings
    """[N, D]."""
    labels: NDArray[np.int64]
    """int64 [N]; empty where there are captions."""
    captions: list[str]
    """Of all images, image by image; empty where there are labels."""
    owners: NDArray[np.int64]
    """int64 [M], the image that each caption belongs to."""


def embed_set(model: Model, data: TestSet, advance: progress.Advance = lambda amount: None) -> EmbeddedImages:
    """Embed the images of a test set, in one pass over it.

    Args:
        advance: told of each batch, how many images it had.

    Raises:
        DataError: the set is damaged.
        ImageDecodeError, ImageTooLargeError: naming the set.
    """
    labels: list[int] = []
    captions: list[tuple[str, ...]] = []

    def encoded() -> Iterator[bytes]:
        for sample in data:
            labels.extend([] if sample.label is None else [sample.label])
            captions.append(sample.captions)
            yield sample.image

    rows = []
    try:
        for batch in model.stream_image(encoded(), batch_size=BATCH):
            rows.append(batch.embeddings)
            advance(len(batch.embeddings))
    except (ImageDecodeError, ImageTooLargeError) as exc:
        raise type(exc)(f"{data.name}: {exc.message}", hint=exc.hint) from exc
    return EmbeddedImages(
        images=np.concatenate(rows),
        labels=np.array(labels, np.int64),
        captions=[caption for of_image in captions for caption in of_image],
        owners=np.repeat(np.arange(len(captions)), [len(of_image) for of_image in captions]),
    )
