"""Test sets in the layout of CLIP_benchmark: images with classes, or with captions to be found.

NAME/test/nshards.txt, 0.tar, …      KEY.jpg|png|webp with KEY.cls, or with KEY.txt, one caption a line
NAME/classnames.txt                  and zeroshot_classification_templates.txt, where `{c}` is the class
NAME/dataset_type.txt                `retrieval`, where there are captions
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import DataError
from edgeclip.manifest import Preprocess
from edgeclip.preprocess import preprocess as prepare
from edgeclip.train.data.sample import IMAGE_SUFFIXES
from edgeclip.train.data.tars import read_groups


@dataclass(frozen=True)
class TestSet:
    """N decoded images, each with its class or its captions."""

    __test__ = False  # its name is no test's

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
        DataError: there is none.
    """
    names = sorted(path.name for path in folder.iterdir() if (path / "test").is_dir()) if folder.is_dir() else []
    if not names:
        raise DataError(f"{folder}: no test sets", hint="a folder of folders with test/0.tar and test/nshards.txt")
    return names


def read_test_set(folder: Path, spec: Preprocess, *, limit: int = 0) -> TestSet:
    """Read and decode one.

    Args:
        limit: images to read, from the first; 0: all.

    Raises:
        DataError: it is incomplete or damaged.
        ImageDecodeError: an image cannot be decoded.
    """
    groups = list(islice(_groups(folder), limit or None))
    if not groups:
        raise DataError(f"{folder.name}: no samples")
    images = [prepare(_image(group), spec, source=f"{folder.name}/{group['__key__']}") for group in groups]
    if (folder / "dataset_type.txt").is_file() and _lines(folder / "dataset_type.txt") == ["retrieval"]:
        captions = tuple(_captions(group, folder.name) for group in groups)
        return TestSet(folder.name, np.stack(images), None, captions=captions)
    classes = tuple(_lines(folder / "classnames.txt"))
    labels = np.array([_label(group, len(classes), folder.name) for group in groups], np.int64)
    templates = tuple(t.replace("{c}", "{}") for t in _lines(folder / "zeroshot_classification_templates.txt"))
    return TestSet(folder.name, np.stack(images), labels, classes, templates)


def _groups(folder: Path) -> Iterator[Mapping[str, Any]]:
    (count,) = _lines(folder / "test" / "nshards.txt") or ("0",)
    for i in range(int(count)):
        yield from read_groups(folder / "test" / f"{i}.tar")


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as exc:
        raise DataError(f"{file}: cannot be read: {exc.strerror or exc}") from exc


def _image(group: Mapping[str, Any]) -> bytes:
    image = next((group[suffix] for suffix in IMAGE_SUFFIXES if suffix in group), None)
    if not isinstance(image, bytes):
        raise DataError(f"{group['__key__']}: no image")
    return image


def _label(group: Mapping[str, Any], classes: int, name: str) -> int:
    text = group.get("cls", b"").decode("ascii", errors="replace").strip()
    if not text.isdigit() or int(text) >= classes:
        raise DataError(f"{name}/{group['__key__']}: class {text!r} is not one of {classes}")
    return int(text)


def _captions(group: Mapping[str, Any], name: str) -> tuple[str, ...]:
    lines = group.get("txt", b"").decode("utf-8", errors="replace").splitlines()
    captions = tuple(line.strip() for line in lines if line.strip())
    if not captions:
        raise DataError(f"{name}/{group['__key__']}: no caption")
    return captions
