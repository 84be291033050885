"""Test sets in the layout of CLIP_benchmark: images with classes, or with captions to be found.

NAME/test/nshards.txt, 0.tar, …      KEY.jpg|png|webp with KEY.cls, or with KEY.txt, one caption a line
NAME/train/                          the same for a training split, where there is one
NAME/classnames.txt                  and zeroshot_classification_templates.txt, where `{c}` is the class
NAME/dataset_type.txt                `retrieval`, where there are captions; `multilabel`, where KEY.npy has a 1 for each
                                     class that applies
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import DataError, UsageError
from edgeclip.manifest import Preprocess
from edgeclip.preprocess import preprocess
from edgeclip.tars import count_tar, read_tar

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "gif")


@dataclass(frozen=True)
class Sample:
    """One image, with its class or its captions."""

    key: str
    image: bytes
    """Encoded."""
    label: int | None = None
    captions: tuple[str, ...] = ()
    applying: tuple[int, ...] | None = None
    """The classes that apply, where there may be several."""


@dataclass(frozen=True)
class TestSet:
    """A test set as it lies on disk. Iterating reads its samples one by one, so that memory stays flat."""

    __test__ = False  # its name is no test's

    folder: Path
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    """With `{}` for the class."""
    limit: int = 0
    """Samples to read, from the first; 0: all."""
    split: str = "test"
    is_multilabel: bool = False
    """Whether several classes may apply to an image."""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def is_retrieval(self) -> bool:
        """Whether its images have captions and no classes."""
        return not self.classes

    def __iter__(self) -> Iterator[Sample]:
        """
        Raises:
            DataError: a shard or a sample is missing or damaged, or there is none.
        """
        files = islice(self._files(), self.limit or None)
        first = next(files, None)
        if first is None:
            raise DataError(f"{self.name}: no samples")
        yield self._sample(first)
        yield from map(self._sample, files)

    def _files(self) -> Iterator[dict[str, bytes]]:
        for tar in list_shards(self.folder, self.split):
            yield from read_tar(tar)

    def _sample(self, files: dict[str, bytes]) -> Sample:
        key = f"{self.name}/{files[''].decode()}"
        image = next((files[suffix] for suffix in IMAGE_SUFFIXES if suffix in files), None)
        if image is None:
            raise DataError(f"{key}: no image")
        if self.is_retrieval:
            return Sample(key, image, captions=_captions(files, key))
        if self.is_multilabel:
            return Sample(key, image, applying=_applying(files, len(self.classes), key))
        return Sample(key, image, _label(files, len(self.classes), key))


@dataclass(frozen=True)
class Decoded:
    """N decoded images, each with its class or its captions."""

    name: str
    pixels: NDArray[np.uint8]
    """uint8 [N, S, S, 3]."""
    labels: NDArray[np.int64] | None
    """int64 [N], for classification."""
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    captions: tuple[tuple[str, ...], ...] = ()
    """Of each image, for retrieval."""


def list_test_sets(folder: Path) -> list[str]:
    """Names of the test sets in a folder, sorted.

    Raises:
        DataError: there is no such folder, or no test set in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder", hint="name the folder that the test sets lie in")
    names = sorted(path.name for path in folder.iterdir() if (path / "test").is_dir())
    if not names:
        raise DataError(f"{folder}: no test sets", hint="a folder of folders with test/0.tar and test/nshards.txt")
    return names


def choose_test_sets(folder: Path, wanted: Sequence[str] = ()) -> list[str]:
    """The names that are wanted, or all.

    Raises:
        DataError: as `list_test_sets`.
        UsageError: there is no set of a name.
    """
    known = list_test_sets(folder)
    for name in wanted:
        if name not in known:
            raise UsageError(f"no test set {name!r} in {folder}", hint=f"known: {', '.join(known)}")
    return list(wanted) or known


def open_test_set(folder: Path, *, limit: int = 0, split: str = "test") -> TestSet:
    """What a test set is; its samples are read when it is iterated.

    Raises:
        DataError: its names or templates are missing.
    """
    kind = _kind(folder)
    if kind == "retrieval":
        return TestSet(folder, limit=limit, split=split)
    classes = _class_names(folder / "classnames.txt")
    templates = [t.replace("{c}", "{}") for t in read_lines(folder / "zeroshot_classification_templates.txt")]
    if not classes or not templates:
        raise DataError(f"{folder}: no {'templates' if classes else 'class names'}")
    return TestSet(folder, tuple(classes), tuple(templates), limit, split, kind == "multilabel")


def has_split(folder: Path, split: str) -> bool:
    """Whether a test set has a split of that name."""
    return (folder / split / "nshards.txt").is_file()


def read_test_set(folder: Path, spec: Preprocess, *, limit: int = 0) -> Decoded:
    """Read and decode one.

    Args:
        limit: images to read, from the first; 0: all.

    Raises:
        DataError: it is incomplete or damaged.
        ImageDecodeError: an image cannot be decoded.
    """
    data = open_test_set(folder, limit=limit)
    if data.is_multilabel:
        raise DataError(f"{data.name}: several classes may apply to an image", hint="edgeclip eval scores such sets")
    pixels, labels, captions = [], [], []
    for sample in data:
        pixels.append(preprocess(sample.image, spec, source=sample.key))
        labels.append(sample.label)
        captions.append(sample.captions)
    if data.is_retrieval:
        return Decoded(data.name, np.stack(pixels), None, captions=tuple(captions))
    return Decoded(data.name, np.stack(pixels), np.array(labels, np.int64), data.classes, data.templates)


def count_samples(folder: Path, limit: int = 0, split: str = "test") -> int:
    """How many samples a set has, at most `limit`; reads the headers alone. For progress.

    Raises:
        DataError: a shard is missing or damaged.
    """
    total = sum(count_tar(tar) for tar in list_shards(folder, split))
    return min(total, limit) if limit else total


def list_shards(folder: Path, split: str = "test") -> list[Path]:
    """The tars of a test set, in order, whether they are there or not.

    Raises:
        DataError: it does not say how many it has.
    """
    file = folder / split / "nshards.txt"
    text = " ".join(read_lines(file))
    if not text.isascii() or not text.isdigit():
        raise DataError(f"{file}: {text!r} is not a number of shards")
    return [folder / split / f"{i}.tar" for i in range(int(text))]


def read_lines(file: Path) -> list[str]:
    """The lines of a UTF-8 file, stripped, without empty ones.

    Raises:
        DataError: it is missing, or not UTF-8.
    """
    return [line for line in _all_lines(file) if line]


def _class_names(file: Path) -> list[str]:
    """One a line; an empty one between others is the name of a class, as in CLEVR's distances."""
    lines = _all_lines(file)
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _all_lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as exc:
        raise DataError(f"{file}: cannot be read: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise DataError(f"{file}: not UTF-8 at byte {exc.start}") from exc


def _kind(folder: Path) -> str:
    """In lower case; without the file there are classes."""
    file = folder / "dataset_type.txt"
    return " ".join(read_lines(file)).lower() if file.is_file() else "classification"


def _applying(files: dict[str, bytes], classes: int, key: str) -> tuple[int, ...]:
    """The classes that an array of zeros and ones, one for each class, says to apply."""
    try:
        marks = np.load(io.BytesIO(files.get("npy", b"")), allow_pickle=False)
    except (ValueError, EOFError, OSError) as exc:
        raise DataError(f"{key}: its classes cannot be read: {exc}") from exc
    if marks.shape != (classes,) or not np.isin(marks, (0, 1)).all():
        raise DataError(f"{key}: {marks.dtype} {list(marks.shape)} is not a 0 or 1 for each of {classes} classes")
    return tuple(np.flatnonzero(marks).tolist())


def _label(files: dict[str, bytes], classes: int, key: str) -> int:
    text = files.get("cls", b"").decode("ascii", errors="replace").strip()
    if not (text.isascii() and text.isdigit()) or int(text) >= classes:
        raise DataError(f"{key}: class {text!r} is not one of {classes}")
    return int(text)


def _captions(files: dict[str, bytes], key: str) -> tuple[str, ...]:
    lines = files.get("txt", b"").decode("utf-8", errors="replace").splitlines()
    captions = tuple(line.strip() for line in lines if line.strip())
    if not captions:
        raise DataError(f"{key}: no caption")
    return captions
