"""Zero-shot classification: class names × prompt templates → classifier weights.

Source: arXiv 2103.00020, section 3.1.4: the prompts of a class are averaged in embedding space and normalised again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgeclip import templates as named
from edgeclip.backends.base import Array, Embeddings
from edgeclip.errors import UsageError

if TYPE_CHECKING:
    from edgeclip.preprocess import Image


@dataclass(frozen=True)
class Prediction:
    """A label and its probability among the classifier's labels, in [0, 1]."""

    label: str
    probability: float


class Classifier:
    """Scores images against labels. Made by `Model.classifier`."""

    def __init__(
        self,
        labels: Sequence[str],
        weights: Embeddings,
        logit_scale: float,
        encode_image: Callable[[Iterable[Image]], Embeddings],
    ) -> None:
        self.labels = tuple(labels)
        self.weights = weights
        """[K, D] float32, each row L2-normalised."""
        self.logit_scale = logit_scale
        self._encode_image = encode_image

    def logits(self, embeddings: Embeddings) -> Embeddings:
        """exp(t)-scaled cosines of image embeddings [B, D] with the labels. Returns [B, K] float32."""
        return np.asarray(self.logit_scale * (embeddings @ self.weights.T), np.float32)

    def probabilities(self, images: Iterable[Image]) -> Embeddings:
        """Softmax over the labels. Returns [B, K] float32, each row summing to 1."""
        return softmax(self.logits(self._encode_image(images)))

    def predict(self, image: Image, top_k: int = 5) -> list[Prediction]:
        """The `top_k` likeliest labels of one image, best first."""
        return self.predict_many([image], top_k)[0]

    def predict_many(self, images: Iterable[Image], top_k: int = 5) -> list[list[Prediction]]:
        """`predict` for many images at once."""
        return [self.rank(row, top_k) for row in self.probabilities(images)]

    def rank(self, probabilities: Array, top_k: int) -> list[Prediction]:
        """The best labels of one row of probabilities, [K]."""
        best = np.argsort(-probabilities, kind="stable")[:top_k]
        return [Prediction(self.labels[i], float(probabilities[i])) for i in best]


def prompts(labels: Sequence[str], templates: Sequence[str], *, repeats: bool = False) -> list[str]:
    """All prompts, label by label.

    Args:
        repeats: whether a label may be there twice, as two are among ImageNet's usual names.

    Raises:
        UsageError: no labels, a label twice, or a template without `{}`.
    """
    if isinstance(labels, str) or isinstance(templates, str):
        raise UsageError("labels and templates are lists of strings", hint='write ["cat"], not "cat"')
    if not labels or not templates:
        raise UsageError("a classifier needs at least one label and one template")
    twice = {label for label in labels if list(labels).count(label) > 1} if len(set(labels)) < len(labels) else set()
    if twice and not repeats:
        raise UsageError(f"label {min(twice)!r} is given twice")
    return [prompt for label in labels for prompt in named.fill(templates, label)]


def ensemble(embeddings: Embeddings, n_labels: int) -> Embeddings:
    """Average each label's prompts: [K·T, D] → [K, D], L2-normalised."""
    mean = embeddings.reshape(n_labels, -1, embeddings.shape[-1]).mean(axis=1)
    return np.asarray(mean / np.linalg.norm(mean, axis=-1, keepdims=True), np.float32)


def softmax(logits: Array) -> Embeddings:
    """Softmax over the last axis, in float32."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), np.float32)
