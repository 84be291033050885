"""A bias probe: how often the people of each group are given labels of each kind.

Rates are only as good as the labels that were thought of: what is denied a label that fits takes one that does not.
Source: arXiv 2103.00020, section 7.1, where a class `child` that was added moved the rates of harmful labels for the
young by far; hence several sets of labels may be tried side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeclip.backends.base import Embeddings
from edgeclip.benchmarks.metrics import Bools, Share
from edgeclip.csvtable import read_table
from edgeclip.errors import DataError, UsageError
from edgeclip.samples import IMAGE_COLUMNS, LABEL_COLUMNS

KIND_COLUMNS = ("set", "kind", "category")
CAVEAT = (
    "These rates depend on the labels that were offered, on their wording and on the prompts: adding or taking away "
    "one label moves them. They compare groups and models under one design; they are no property of the people, and "
    "no proof that a model is fair. Try more than one design (--labels again) before you conclude anything."
)


@dataclass(frozen=True)
class Design:
    """Labels that are offered together, each of a kind."""

    name: str
    labels: tuple[str, ...]
    kinds: tuple[str, ...]
    """Of each label; empty for labels of no interest."""

    def rates(self, images: Embeddings, weights: Embeddings) -> Iterator[tuple[str, Bools]]:
        """Of each kind, which images are given a label of it.

        Args:
            images: [N, D]; weights: [K, D], one row for each label.
        """
        given = (images @ weights.T).argmax(axis=1)
        for kind in dict.fromkeys(filter(None, self.kinds)):
            yield kind, np.array([one == kind for one in self.kinds])[given]


@dataclass(frozen=True)
class Groups:
    """The group that each image belongs to, by aspect."""

    aspects: dict[str, tuple[str, ...]]
    """Column of the table -> the group of each image, in the order of the data; empty where it is not known."""

    def members(self) -> Iterator[tuple[str, Bools]]:
        """Everybody, and then each group as `aspect=group` with its images."""
        count = len(next(iter(self.aspects.values())))
        yield "all", np.ones(count, bool)
        for aspect, groups in self.aspects.items():
            for group in sorted(set(filter(None, groups))):
                yield f"{aspect}={group}", np.array([one == group for one in groups])


def read_design(path: Path) -> Design:
    """A CSV with the columns label and set, where a set is a kind of labels.

    Raises:
        DataError: it cannot be read, has no label, one twice, or none of a kind.
        UsageError: a column is missing.
    """
    table = read_table(path)
    label, kind = table.column(LABEL_COLUMNS), table.column(KIND_COLUMNS)
    rows = [((row[label] or "").strip(), (row[kind] or "").strip()) for row in table.rows]
    labels = [name for name, _ in rows if name]
    twice = sorted({name for name in labels if labels.count(name) > 1})
    if twice:
        raise DataError(f"{path}: label {twice[0]!r} is there twice")
    kinds = tuple(of for name, of in rows if name)
    if not any(kinds):
        raise DataError(f"{path}: no label is of a set", hint="rows of label and set, as `thief,crime-related`")
    return Design(path.stem, tuple(labels), kinds)


def read_groups(path: Path, keys: Sequence[str]) -> Groups:
    """A CSV with a column image, and one for each aspect by which people are grouped.

    Args:
        keys: the images that were embedded, as the table names them.

    Raises:
        DataError: it cannot be read, or an image is there twice.
        UsageError: there is no column but that of images.
    """
    table = read_table(path)
    image = table.column(IMAGE_COLUMNS)
    aspects = [name for name in table.columns if name and name != image]
    if not aspects:
        raise UsageError(f"{path}: no column of groups", hint="columns beside that of images, as gender or age")
    by_image: dict[str, dict[str, str]] = {}
    for row in table.rows:
        name = (row[image] or "").strip()
        if name in by_image:
            raise DataError(f"{path}: {name} is there twice", hint="one row for each image")
        by_image[name] = row
    return Groups({aspect: tuple((by_image[one][aspect] or "").strip() for one in keys) for aspect in aspects})


def all_labels(designs: Sequence[Design]) -> tuple[str, ...]:
    """The labels of all designs, each once."""
    return tuple(dict.fromkeys(label for design in designs for label in design.labels))


def rates(
    designs: Sequence[Design], groups: Groups, images: Embeddings, weights: Embeddings
) -> Iterator[tuple[str, str, str, Share]]:
    """Design, kind of labels, group, and the share of the group's images that get a label of the kind.

    Args:
        weights: [K, D], in the order of `all_labels`.
    """
    position = {label: i for i, label in enumerate(all_labels(designs))}
    for design in designs:
        rows = weights[[position[label] for label in design.labels]]
        for kind, given in design.rates(images, rows):
            for group, members in groups.members():
                yield design.name, kind, group, Share(given[members])
