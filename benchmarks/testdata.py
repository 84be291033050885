"""What an evaluation reads: CLIP_benchmark test sets, class folders and tables, from disk or from a hub.

Every one of them is iterated as `testset.Sample`s, and has the names and prompts of its classes or captions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import msgspec

from edgeclip import hub, samples, templates
from edgeclip.csvtable import read_table
from edgeclip.errors import DataError, UsageError
from edgeclip.samples import SampleReader, draw, find_samples
from edgeclip.testset import (
    Sample,
    TestSet,
    choose_test_sets,
    count_samples,
    has_split,
    open_test_set,
    read_lines,
)

EXPECTED = "expected: CLIP_benchmark test sets, class folders, or a CSV with columns image and label or caption"
TEMPLATES = "zeroshot_classification_templates.txt"
SPLITS = ("test", "val")
"""Folders beside `train` whose class folders are tested on, the first that is there."""


class DataSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Which data, so that another process opens the same."""

    name: str
    path: str
    split: str = "test"
    limit: int = 0
    """Images of a test set from the first, of other data drawn; 0: all."""
    labels: tuple[str, ...] = ()
    """In place of the data's own classes: images are not expected to have one."""
    texts: bool = True
    """Whether prompts and captions are embedded, too."""


@dataclass(frozen=True)
class LooseSet:
    """Class folders or a table. Iterating reads its samples one by one."""

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    entries: tuple[samples.Entry, ...]
    is_labelled: bool = True
    """Whether each image has one of the classes."""
    is_multilabel: bool = False

    @property
    def is_retrieval(self) -> bool:
        """Whether its images have captions and no classes."""
        return not self.classes

    def __iter__(self) -> Iterator[Sample]:
        """
        Raises:
            DataError: an image is missing, has no caption, or a class that the others lack.
        """
        numbers = {name: i for i, name in enumerate(self.classes)}
        with SampleReader() as reader:
            for entry in self.entries:
                one = reader.read(entry)
                image = _bytes(one.image)
                if self.is_retrieval:
                    yield Sample(one.key, image, captions=one.captions)
                elif self.is_labelled:
                    yield Sample(one.key, image, _number(one, numbers))
                else:
                    yield Sample(one.key, image)


Data: TypeAlias = TestSet | LooseSet


def find_data(
    places: Sequence[str], wanted: Sequence[str] = (), *, limit: int = 0, train: bool = False
) -> list[DataSpec]:
    """What lies at paths or `hf-hub:org/name[@revision]`: one spec a data set.

    Args:
        wanted: names of sets; all by default.
        train: whether training splits are needed, too.

    Raises:
        DataError: there is nothing, or it cannot be got.
        UsageError: there is no set of a name.
    """
    found: list[DataSpec] = []
    for place in places:
        if place.startswith(hub.PREFIX):
            name = hub.split_reference(place)[0].rpartition("/")[2]
            found.append(DataSpec(name=name, path=str(download(place, train=train)), limit=limit))
        else:
            found += [DataSpec(name=_name(one), path=str(one), limit=limit) for one in _sets_in(Path(place))]
    names = [spec.name for spec in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"two data sets are called {twice[0]!r}", hint="rename one, or evaluate them one at a time")
    for name in wanted:
        if name not in names:
            raise UsageError(f"no data set {name!r}", hint=f"known: {', '.join(names)}")
    return [spec for spec in found if not wanted or spec.name in wanted]


def download(reference: str, *, train: bool = False) -> Path:
    """The local directory of a data set on the hub, in CLIP_benchmark's layout; without its training split by default.

    Raises:
        DataError: there is no such data set, or the hub cannot be reached.
        TargetUnavailableError: huggingface_hub is not installed.
    """
    repository, revision = hub.split_reference(reference)
    patterns = ["*.txt", "test/*", *(["train/*"] if train else [])]
    folder = hub.fetch(repository, revision, patterns, DataError, kind="dataset")
    if not has_split(folder, "test"):
        raise DataError(f"{reference}: not in CLIP_benchmark's layout: no test/nshards.txt")
    return folder


def training_split(spec: DataSpec) -> DataSpec | None:
    """The training data that belong to a test set, where there are any."""
    path = Path(spec.path)
    if has_split(path, "train"):
        return msgspec.structs.replace(spec, split="train")
    return msgspec.structs.replace(spec, split="train") if _has_folders(path) else None


def open_data(spec: DataSpec) -> Data:
    """
    Raises:
        DataError, UsageError: it is missing, damaged or not labelled.
    """
    path = Path(spec.path)
    if has_split(path, spec.split):
        return open_test_set(path, limit=spec.limit, split=spec.split)
    return _open_loose(spec)


def count(spec: DataSpec) -> int:
    """How many images will be read; of test sets the headers alone are read. Raises as `open_data`."""
    path = Path(spec.path)
    if has_split(path, spec.split):
        return count_samples(path, spec.limit, spec.split)
    data = _open_loose(spec)
    return len(data.entries)


def _name(path: Path) -> str:
    whole = path.absolute()
    return whole.name if whole.is_dir() else whole.stem


def _sets_in(path: Path) -> list[Path]:
    if not path.is_dir() or has_split(path, "test") or _has_folders(path):
        return [path]
    if any(has_split(one, "test") for one in path.iterdir()):
        return [path / name for name in choose_test_sets(path)]
    return [path]


def _has_folders(path: Path) -> bool:
    return (path / "train").is_dir() and any((path / name).is_dir() for name in SPLITS)


def _open_loose(spec: DataSpec) -> LooseSet:
    path = Path(spec.path)
    prompts = _prompts(path)
    if spec.labels:
        listed = table_images(path)
        drawn = [listed[i] for i in draw(len(listed), spec.limit)]
        return LooseSet(spec.name, spec.labels, prompts, tuple(drawn), is_labelled=False)
    found = find_samples(_split_folder(path, spec.split))
    entries = [found.entries[i] for i in draw(len(found.entries), spec.limit)]
    if all(entry.names for entry in found.entries):
        return LooseSet(spec.name, _classes(spec), prompts, tuple(entries))
    if all(entry.captions for entry in found.entries):
        return LooseSet(spec.name, (), (), tuple(entries))
    bare = sum(not entry.names and not entry.captions for entry in found.entries)
    raise DataError(
        f"{path}: {bare} of {len(found.entries)} pictures have neither a class nor a caption"
        if bare
        else f"{path}: some pictures have a class and others a caption",
        hint=f"{EXPECTED}; class folders that are only numbered need a classnames.txt beside them",
    )


def table_images(path: Path) -> list[samples.Entry]:
    """The images of a table, whatever it says of them.

    Raises:
        DataError: it cannot be read, or has no image.
        UsageError: it has no column of images.
    """
    table = read_table(path)
    column = table.column(samples.IMAGE_COLUMNS)
    names = dict.fromkeys((row[column] or "").strip() for row in table.rows)
    found = [samples.Entry(name, path.parent / name) for name in names if name]
    if not found:
        raise DataError(f"{path}: no pictures in this table", hint="a column image, with paths from the table's folder")
    return found


def _classes(spec: DataSpec) -> tuple[str, ...]:
    """Those of the test split, whichever split is read; of all of its pictures, whatever the limit."""
    return tuple(sorted({entry.names[0] for entry in find_samples(_split_folder(Path(spec.path), "test")).entries}))


def _split_folder(path: Path, split: str) -> Path:
    if not _has_folders(path):
        return path
    names = SPLITS if split == "test" else (split,)
    return next(path / name for name in names if (path / name).is_dir())


def _prompts(path: Path) -> tuple[str, ...]:
    """Those that lie beside the pictures, or else our own."""
    file = (path if path.is_dir() else path.parent) / TEMPLATES
    return tuple(line.replace("{c}", "{}") for line in read_lines(file)) if file.is_file() else templates.general


def _number(sample: samples.Sample, numbers: dict[str, int]) -> int:
    name = sample.names[0]
    if name not in numbers:
        raise DataError(f"{sample.key}: class {name!r} does not occur in the test split")
    return numbers[name]


def _bytes(image: bytes | Path) -> bytes:
    if isinstance(image, bytes):
        return image
    try:
        return image.read_bytes()
    except (OSError, ValueError) as exc:
        raise DataError(f"{image}: cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc
