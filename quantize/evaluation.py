"""What a loss of accuracy is measured on: inputs of both towers, and the rule of what is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from edgeclip import templates, zeroshot
from edgeclip.backends.base import Embeddings
from edgeclip.errors import DataError, ImageDecodeError, UsageError
from edgeclip.manifest import Preprocess
from edgeclip.pixels import batches
from edgeclip.quantize.calibration import Calibration, different
from edgeclip.samples import EXPECTED, Entry, SampleReader, Samples, draw, find_samples
from edgeclip.testset import Decoded, list_test_sets, read_test_set
from edgeclip.tokenizer import Ids, Tokenizer

Metric = Literal["top1", "text_to_image_r1", "agreement"]
Pair = tuple[Embeddings | None, Embeddings | None]
"""Embeddings of the images and of the texts; None where a tower is absent."""
Pixels = NDArray[np.uint8]
_BATCH = 32
_CHUNK = 1 << 24
"""Similarities that are held at once: 64 MB."""


@dataclass(frozen=True)
class Evaluation:
    """Samples, and which of them embeddings get right. A tie counts as wrong, and so does NaN."""

    data: str
    """Name of what was read."""
    metric: Metric
    """`top1`: an image's nearest class is its own. `text_to_image_r1`: a caption's nearest image is its own.
    `agreement`: an image's nearest text, or where there is none the nearest other image, is the same as the
    reference's."""
    pixels: Pixels
    """uint8 [N, S, S, 3]."""
    ids: Ids | None
    """int32 [M, C]: the prompts of all classes, class by class; captions; or texts to compare with."""
    answers: NDArray[np.int64] | None = None
    """The class of each image, or the image of each caption; None where the reference decides."""
    classes: int = 0

    @property
    def groups(self) -> NDArray[np.int64] | None:
        """int64, one for each element of `right`: equal for captions of one image, which are not independent."""
        return self.answers if self.metric == "text_to_image_r1" else None

    def right(self, images: Embeddings | None, texts: Embeddings | None, reference: Pair) -> NDArray[np.bool_]:
        """Which samples are right: images, or captions for `text_to_image_r1`. Returns bool [N] or [M].

        Args:
            images: float32 [N, D], L2-normalised; None takes the reference's.
            texts: float32 [M, D], L2-normalised; None takes the reference's.
            reference: the fp32 embeddings.

        Raises:
            UsageError: a tower is needed that neither has.
        """
        images = reference[0] if images is None else images
        texts = reference[1] if texts is None else texts
        if self.answers is None:
            return _agrees((images, texts), reference)
        if images is None or texts is None:
            raise UsageError(
                f"{self.data}: {self.metric} needs both towers",
                hint="quantize both, or measure the agreement with fp32 on calibration data",
            )
        if self.metric == "text_to_image_r1":
            return is_nearest(texts, images, self.answers)
        return is_nearest(images, zeroshot.ensemble(texts, self.classes), self.answers)


def is_nearest(
    rows: Embeddings, others: Embeddings, wanted: NDArray[np.int64], *, same: bool = False
) -> NDArray[np.bool_]:
    """bool [n]: whether the wanted one of the others is nearer than every further one.

    Args:
        rows: [n, D]; others: [m, D]; wanted: int64 [n], in [0, m).
        same: rows and others are the same, and none is its own neighbour.
    """
    found = np.empty(len(rows), bool)
    step = max(1, _CHUNK // len(others))
    for start in range(0, len(rows), step):
        part = slice(start, min(start + step, len(rows)))
        similarity = _similarity(rows, others, part, same)
        own = np.take_along_axis(similarity, wanted[part, None], axis=1)
        found[part] = ((~(similarity < own)).sum(axis=1) == 1) & ~np.isnan(own[:, 0])
    return found


def agreement(calibration: Calibration) -> Evaluation:
    """Agreement with fp32 where nothing is labelled. Of equal pictures one is taken: they are each other's neighbours.

    Raises:
        DataError: there is nothing to choose among.
    """
    pixels = calibration.pixels[different(calibration.pixels)]
    others = len(pixels) - 1 if calibration.ids is None else len(calibration.ids)
    if others < 2:
        raise DataError(
            f"{calibration.spec.source}: too little to measure agreement on: each picture has {others} to choose among",
            hint="name labelled data to measure on",
        )
    return Evaluation(calibration.spec.source, "agreement", pixels, calibration.ids)


def open_evaluation(path: Path, preprocess: Preprocess, tokenizer: Tokenizer | None, *, limit: int = 0) -> Evaluation:
    """Read labelled data: a test set, class folders, a table of captions, or tar shards.

    Args:
        path: as `samples.find_samples` takes it, but one test set.
        limit: images at most; of a test set the first, of other data a drawn part; 0: all.

    Raises:
        DataError: it is missing, damaged or not labelled.
        ImageDecodeError: an image cannot be decoded; a measurement does not leave out what is hard.
        UsageError: it is a folder of several test sets, or the model has no text tower.
    """
    if tokenizer is None:
        raise UsageError(
            f"{path}: labelled data needs the text tower, which the model lacks",
            hint="leave it out: agreement with fp32 is measured on the calibration data",
        )
    samples = find_samples(path)
    if samples.kind != "test sets":
        return _from_samples(samples, preprocess, tokenizer, limit)
    if not (path / "test").is_dir():
        raise UsageError(f"{path}: a folder of test sets", hint=f"name one: {', '.join(list_test_sets(path))}")
    return _from_test_set(read_test_set(path, preprocess, limit=limit), tokenizer)


def _from_test_set(data: Decoded, tokenizer: Tokenizer) -> Evaluation:
    if data.labels is None:
        return _retrieval(data.name, data.pixels, data.captions, tokenizer)
    prompts = zeroshot.prompts(data.classes, data.templates, repeats=True)
    return Evaluation(data.name, "top1", data.pixels, tokenizer(prompts), data.labels, len(data.classes))


def _from_samples(samples: Samples, preprocess: Preprocess, tokenizer: Tokenizer, limit: int) -> Evaluation:
    """Classes are those of all samples, whatever the limit."""
    entries = samples.entries
    with SampleReader() as reader:
        said = [reader.texts(entry) for entry in entries]
        chosen = draw(len(entries), limit)
        if all(names for _, names in said):
            classes = sorted({names[0] for _, names in said})
            pixels = _decode(samples, [entries[i] for i in chosen], reader, preprocess)
            number = {name: i for i, name in enumerate(classes)}
            labels = np.array([number[said[i][1][0]] for i in chosen], np.int64)
            ids = tokenizer(zeroshot.prompts(classes, templates.general))
            return Evaluation(samples.name, "top1", pixels, ids, labels, len(classes))
        if all(captions for captions, _ in said):
            pixels = _decode(samples, [entries[i] for i in chosen], reader, preprocess)
            return _retrieval(samples.name, pixels, [said[i][0] for i in chosen], tokenizer)
    bare = sum(not captions and not names for captions, names in said)
    raise DataError(
        f"{samples.path}: {bare} of {len(said)} pictures have neither a class nor a caption"
        if bare
        else f"{samples.path}: some pictures have a class and others a caption",
        hint=f"{EXPECTED}; class folders that are only numbered need a classnames.txt beside them",
    )


def _retrieval(name: str, pixels: Pixels, captions: Sequence[Sequence[str]], tokenizer: Tokenizer) -> Evaluation:
    owners = np.repeat(np.arange(len(pixels)), [len(of_image) for of_image in captions])
    ids = tokenizer([caption for of_image in captions for caption in of_image])
    return Evaluation(name, "text_to_image_r1", pixels, ids, owners)


def _decode(samples: Samples, entries: Sequence[Entry], reader: SampleReader, preprocess: Preprocess) -> Pixels:
    encoded = (reader.read(entry).image for entry in entries)
    parts = []
    for batch in batches(encoded, preprocess, _BATCH, "skip"):
        for one in batch.skipped:
            raise ImageDecodeError(f"{samples.path}: {entries[one.index].key}: {one.reason}", hint="take it out")
        parts.append(batch.pixels)
    return np.concatenate(parts)


def _agrees(found: Pair, reference: Pair) -> NDArray[np.bool_]:
    """Whether the nearest neighbour is the same: of images among texts, or of what there is among the others."""
    rows, others, same = _sides(found)
    ideal_rows, ideal_others, _ = _sides(reference)
    wanted = np.empty(len(ideal_rows), np.int64)
    step = max(1, _CHUNK // len(ideal_others))
    for start in range(0, len(ideal_rows), step):
        part = slice(start, min(start + step, len(ideal_rows)))
        wanted[part] = _similarity(ideal_rows, ideal_others, part, same).argmax(axis=1)
    return is_nearest(rows, others, wanted, same=same)


def _sides(pair: Pair) -> tuple[Embeddings, Embeddings, bool]:
    """What asks, what is asked for, and whether they are the same."""
    present = [rows for rows in pair if rows is not None]
    if not present:
        raise UsageError("no embeddings to measure agreement of")
    return present[0], present[-1], len(present) == 1


def _similarity(rows: Embeddings, others: Embeddings, part: slice, same: bool) -> Embeddings:
    similarity = cast("Embeddings", rows[part] @ others.T)
    if same:
        similarity[np.arange(len(similarity)), np.arange(part.start, part.stop)] = -np.inf
    return similarity
