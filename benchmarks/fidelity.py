"""How near a variant's embeddings are to those of fp32, and what it gets right, on the same pictures and texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeclip import scores, zeroshot
from edgeclip.backends.base import Array, Embeddings
from edgeclip.benchmarks.variants import Variant
from edgeclip.manifest import Preprocess
from edgeclip.paired import Cosines, Drop, cosines, drop
from edgeclip.scores import Score
from edgeclip.testset import read_test_set
from edgeclip.tokenizer import Tokenizer


@dataclass(frozen=True)
class Trial:
    """Pictures and texts, ready for the towers."""

    data: str
    pixels: Array
    """uint8 [N, S, S, 3]."""
    ids: Array
    """int32 [M, C]: the prompts of all classes, class by class, or captions."""
    labels: NDArray[np.int64] | None = None
    """int64 [N]; None where nothing is to be right."""
    classes: int = 0


@dataclass(frozen=True)
class Embedded:
    """A trial, embedded by one variant."""

    images: Embeddings
    texts: Embeddings
    answers: NDArray[np.int64]
    """int64 [N]: the nearest class of each picture, or the nearest text."""


@dataclass(frozen=True)
class Fidelity:
    """What one variant kept of fp32."""

    images: Cosines
    texts: Cosines
    agreement: float
    """The share of pictures whose nearest class, or text, is that of fp32."""
    top1: Score | None = None
    drop: Drop | None = None
    """What it loses of top-1, on the same pictures."""


def labelled(folder: Path, spec: Preprocess, tokenizer: Tokenizer, limit: int = 0) -> Trial:
    """A test set with classes, whose prompts are its own.

    Raises:
        DataError, ImageDecodeError: it is damaged.
    """
    data = read_test_set(folder, spec, limit=limit)
    prompts = zeroshot.prompts(data.classes, data.templates, repeats=True)
    return Trial(data.name, data.pixels, tokenizer(prompts), data.labels, len(data.classes))


def captioned(folder: Path, spec: Preprocess, tokenizer: Tokenizer, limit: int) -> Trial:
    """A test set with captions, of which each picture's first is taken.

    Raises:
        DataError, ImageDecodeError: it is damaged.
    """
    data = read_test_set(folder, spec, limit=limit)
    return Trial(data.name, data.pixels, tokenizer([captions[0] for captions in data.captions]))


def embed(trial: Trial, variant: Variant, threads: int) -> Embedded:
    """Run a trial."""
    images = variant.embed("image", trial.pixels, threads)
    texts = variant.embed("text", trial.ids, threads)
    targets = zeroshot.ensemble(texts, trial.classes) if trial.classes else texts
    return Embedded(images, texts, np.asarray((images @ targets.T).argmax(axis=1), np.int64))


def compare(trial: Trial, found: Embedded, reference: Embedded) -> Fidelity:
    """Hold what a variant gives against what fp32 gives.

    Raises:
        NonFiniteError: an embedding has NaN or infinity.
    """
    top1 = lost = None
    if trial.labels is not None:
        right, before = found.answers == trial.labels, reference.answers == trial.labels
        top1 = scores.score(trial.data, "top1", float(right.mean()), len(right))
        lost = drop(before, right)
    return Fidelity(
        images=cosines(found.images, reference.images),
        texts=cosines(found.texts, reference.texts),
        agreement=float((found.answers == reference.answers).mean()),
        top1=top1,
        drop=lost,
    )


def measure(trial: Trial, variants: Sequence[Variant], threads: int) -> dict[str, Fidelity]:
    """By label, what each variant kept of the first, which is fp32."""
    reference = embed(trial, variants[0], threads)
    return {one.label: compare(trial, embed(trial, one, threads), reference) for one in variants}
