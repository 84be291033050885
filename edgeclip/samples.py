"""What lies at a path, as pictures with texts: photographs, class folders, test sets, tar shards, or a table.

Looking lists names alone, and the headers of tars; a picture is read when it is asked for.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from edgeclip.csvtable import read_table
from edgeclip.errors import DataError, UsageError
from edgeclip.tars import SUFFIXES, Piece, Reader, index_tar
from edgeclip.testset import IMAGE_SUFFIXES, list_shards, open_test_set, read_lines

EXPECTED = (
    "expected: a folder of pictures or of class folders, a CLIP_benchmark test set or a folder of them, "
    "tar shards, or a CSV or TSV with columns image and caption, or image and label"
)
IMAGE_COLUMNS = ("image", "path", "filepath", "file")
CAPTION_COLUMNS = ("caption", "text", "title")
LABEL_COLUMNS = ("label", "class")
CLASS_NAMES = "classnames.txt"
_TEXT_SUFFIXES = ("txt", "json", "cls")
_NUMBERED = re.compile(r"n?\d+")
"""Names of folders that say nothing: numbers, and WordNet's."""
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class Sample:
    """One picture, with what is said of it."""

    key: str
    image: bytes | Path
    """Encoded."""
    captions: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    """Of its class; the first is the name, others are synonyms."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture that is listed, and not yet read."""

    key: str
    image: Path | Piece
    captions: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    texts: tuple[tuple[str, Piece], ...] = ()
    """By suffix, files of a tar that say more."""
    classes: tuple[str, ...] = ()
    """What a `cls` counts."""
    templates: tuple[str, ...] = ()
    """Prompts of its test set."""


@dataclass(frozen=True)
class Samples:
    """All that lies at a path."""

    path: Path
    kind: str
    """What it was taken for, in words."""
    files: tuple[Path, ...]
    """What it consists of. Where none of them changes, the entries are the same."""
    _list: Callable[[], Iterable[Entry]]

    @property
    def name(self) -> str:
        """The base name."""
        return (self.path.name or self.path.resolve().name or "data")[:200]

    @cached_property
    def entries(self) -> Sequence[Entry]:
        """
        Raises:
            DataError: a tar is cut or damaged, or there is no picture.
        """
        found = list(self._list())
        if not found:
            raise DataError(f"{self.path}: no pictures in these {self.kind}", hint=EXPECTED)
        return found

    def state(self) -> list[tuple[str, int, int]]:
        """Name, size and time of each file; -1 where it is missing. Tells whether anything was changed."""
        return [(str(file), *_status(file)) for file in self.files]


class SampleReader:
    """Reads entries; cheapest in the order in which they are listed. Not for several threads."""

    def __init__(self) -> None:
        self._tars = Reader()

    def __enter__(self) -> SampleReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self._tars.close()

    def read(self, entry: Entry) -> Sample:
        """
        Raises:
            DataError: its tar cannot be read, or its texts are not what they should be.
        """
        pieces = dict(entry.texts)
        if isinstance(entry.image, Piece):
            pieces[""] = entry.image
        files = self._read(pieces)
        image = entry.image if isinstance(entry.image, Path) else files.pop("")
        return Sample(entry.key, image, *_described(entry, files))

    def texts(self, entry: Entry) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Captions and names of an entry; its image is not read. Raises as `read`."""
        return _described(entry, self._read(dict(entry.texts)))

    def _read(self, pieces: Mapping[str, Piece]) -> dict[str, bytes]:
        """In the order in which they lie."""
        return {key: self._tars.read(piece) for key, piece in sorted(pieces.items(), key=lambda item: item[1].offset)}


def find_samples(path: Path) -> Samples:
    """What lies at a path, which may be a pattern of tars: `*` and ranges such as `{000..003}`.

    Raises:
        DataError: there is nothing, or a table or test set is damaged.
        UsageError: it is a file of no kind that is understood.
    """
    if not os.path.exists(path):  # noqa: PTH110 - pathlib's raises for names that no file can have
        return _pattern(path)
    layouts = _OF_FOLDERS if path.is_dir() else _OF_FILES
    found = next(filter(None, (layout(path) for layout in layouts)), None)
    if found is not None:
        return found
    if path.is_dir():
        raise DataError(f"{path}: no pictures in this folder", hint=EXPECTED)
    raise UsageError(f"{path}: neither a table, nor a tar, nor a picture by its name", hint=EXPECTED)


def _pattern(path: Path) -> Samples:
    if not any(sign in str(path) for sign in "*?[{"):
        raise DataError(f"{path}: no such file or folder", hint=EXPECTED)
    tars: list[Path] = []
    for name in _expand(str(path)):
        found = sorted(glob.glob(name))  # noqa: PTH207 - the pattern may begin at the root
        if not found:
            raise DataError(f"{name}: no such shard", hint=EXPECTED)
        tars += map(Path, found)
    for tar in tars:
        if not _is_tar(tar):
            raise UsageError(f"{tar}: matches {path.name}, and is no tar", hint="a pattern names tars")
    return _shards(path, tars)


def _expand(pattern: str) -> Iterator[str]:
    match = _RANGE.search(pattern)
    if match is None:
        yield pattern
        return
    width = len(match[1])
    for number in range(int(match[1]), int(match[2]) + 1):
        yield from _expand(f"{pattern[: match.start()]}{number:0{width}d}{pattern[match.end() :]}")


def _tar(path: Path) -> Samples | None:
    return _shards(path, [path]) if _is_tar(path) else None


def _picture(path: Path) -> Samples | None:
    return Samples(path, "pictures", (path,), lambda: [Entry(path.name, path)]) if _is_image(path.name) else None


def _table(path: Path) -> Samples | None:
    """Rows of one picture, side by side or not, are its captions; or each picture has one row with its class."""
    if path.suffix.lower() not in (".csv", ".tsv"):
        return None
    table = read_table(path)
    image = table.column(IMAGE_COLUMNS)
    named = table.has(LABEL_COLUMNS) and not table.has(CAPTION_COLUMNS)
    text = table.column(LABEL_COLUMNS if named else CAPTION_COLUMNS)
    said: dict[str, list[str]] = {}
    for row in table.rows:
        if row[image]:
            said.setdefault(row[image].strip(), []).append(row[text] or "")
    entries = [_table_entry(path, key, _strings(texts), named) for key, texts in said.items()]
    return Samples(path, "rows", (path, *(path.parent / key for key in said)), lambda: entries)


def _table_entry(path: Path, key: str, texts: tuple[str, ...], named: bool) -> Entry:
    if named and len(texts) > 1:
        raise DataError(f"{path}: {key} has {len(texts)} classes: {', '.join(texts)}", hint="one row for each picture")
    return Entry(key, path.parent / key, names=texts) if named else Entry(key, path.parent / key, texts)


def draw(total: int, limit: int) -> list[int]:
    """Positions of a part that was drawn, as folders and tables are rarely shuffled; in the order in which they lie."""
    if not limit or limit >= total:
        return list(range(total))
    return sorted(np.random.default_rng(0).permutation(total)[:limit].tolist())


def _test_set(path: Path) -> Samples | None:
    if not _is_test_set(path):
        return None
    return Samples(path, "test sets", tuple(_set_files(path)), partial(_set_entries, path))


def _test_sets(path: Path) -> Samples | None:
    folders = sorted(one for one in path.iterdir() if _is_test_set(one))
    if not folders:
        return None
    files = [file for folder in folders for file in _set_files(folder)]
    return Samples(
        path, "test sets", tuple(files), lambda: [entry for folder in folders for entry in _set_entries(folder)]
    )


def _set_files(folder: Path) -> list[Path]:
    return [*sorted(file for file in folder.iterdir() if file.is_file()), *list_shards(folder)]


def _set_entries(folder: Path) -> Iterator[Entry]:
    data = open_test_set(folder)
    return _tar_entries(list_shards(folder), data.name, data.classes, data.templates)


def _shard_folder(path: Path) -> Samples | None:
    tars = sorted(file for file in path.iterdir() if _is_tar(file))
    return _shards(path, tars) if tars else None


def _shards(path: Path, tars: Sequence[Path]) -> Samples:
    return Samples(path, "shards", tuple(tars), lambda: _tar_entries(tars))


def _tar_entries(
    tars: Sequence[Path], name: str = "", classes: tuple[str, ...] = (), templates: tuple[str, ...] = ()
) -> Iterator[Entry]:
    for tar in tars:
        for key, files in index_tar(tar):
            image = next((files[suffix] for suffix in IMAGE_SUFFIXES if suffix in files), None)
            if image is not None:
                texts = tuple((suffix, files[suffix]) for suffix in _TEXT_SUFFIXES if suffix in files)
                prefix = name or tar.name.split(".")[0]
                yield Entry(f"{prefix}/{key}", image, texts=texts, classes=classes, templates=templates)


def _pictures(path: Path) -> Samples | None:
    """Class folders, where every picture lies in one of several folders that are named, or else just pictures."""
    found = list(_walk(path))
    parts = [file.relative_to(path).parts for file in found]
    names = _class_names(path, sorted({part[0] for part in parts})) if {len(part) for part in parts} == {2} else {}
    entries = [
        Entry("/".join(part), file, names=names.get(part[0], ())) for part, file in zip(parts, found, strict=True)
    ]
    extra = [path / CLASS_NAMES] if names and (path / CLASS_NAMES).is_file() else []
    kind = "class folders" if names else "pictures"
    return Samples(path, kind, (*extra, *found), lambda: entries) if found else None


def _class_names(path: Path, folders: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Folder → its class; from a file beside them where there is one. Nothing where the folders are only numbered."""
    file = path / CLASS_NAMES
    if file.is_file():
        listed = read_lines(file)
        if len(listed) != len(folders):
            raise DataError(f"{file}: {len(listed)} names for {len(folders)} class folders", hint="one a line, sorted")
        return {folder: (name,) for folder, name in zip(folders, listed, strict=True)}
    if len(folders) < 2 or all(map(_NUMBERED.fullmatch, folders)):
        return {}
    return {folder: (folder.replace("_", " "),) for folder in folders}


def _walk(folder: Path) -> Iterator[Path]:
    """Pictures below, sorted; hidden files and folders are left out."""
    for directory, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(directory, name) for name in sorted(files) if _is_image(name))


_OF_FILES: tuple[Callable[[Path], Samples | None], ...] = (_table, _tar, _picture)
_OF_FOLDERS: tuple[Callable[[Path], Samples | None], ...] = (_test_set, _test_sets, _shard_folder, _pictures)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.rpartition(".")[2].lower() in IMAGE_SUFFIXES and "." in name


def _is_tar(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".") and path.is_file()


def _is_test_set(path: Path) -> bool:
    return (path / "test" / "nshards.txt").is_file()


def _status(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except (OSError, ValueError):  # a name from a table may hold a NUL
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _described(entry: Entry, files: Mapping[str, bytes]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Captions and names: what is known of an entry, and what its files say."""
    captions, names = entry.captions, entry.names
    try:
        if "txt" in files:
            captions = _strings(files["txt"].decode("utf-8").splitlines())
        if "json" in files:
            said = _from_json(files["json"])
            captions, names = said[0] or captions, said[1]
        if entry.classes and "cls" in files:
            names = (entry.classes[_label(files["cls"], len(entry.classes))],)
    except (ValueError, RecursionError) as exc:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise DataError(f"{entry.key}: its text cannot be used: {exc}") from exc
    return captions, names


def _from_json(data: bytes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    said = json.loads(data)
    if not isinstance(said, dict):
        raise ValueError("its JSON is no object")
    captions, names = (said.get(f"{key}s") or said.get(key) or [] for key in ("caption", "name"))
    return _strings(captions), _strings(names)


def _strings(values: Any) -> tuple[str, ...]:
    """One string or a list of them; blank ones, and ones that were there before, are left out."""
    listed = [values] if isinstance(values, str) else values
    if not isinstance(listed, list) or not all(isinstance(value, str) for value in listed):
        raise ValueError("captions and names are lists of strings")
    "".join(listed).encode()  # JSON may hold half of a surrogate pair, which is no text
    return tuple(dict.fromkeys(value.strip() for value in listed if value.strip()))


def _label(data: bytes, classes: int) -> int:
    text = data.decode("ascii").strip()
    if not text.isdigit() or int(text) >= classes:
        raise ValueError(f"class {text!r} is not one of {classes}")
    return int(text)
