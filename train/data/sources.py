"""Where pairs come from: WebDataset shards, tables and class folders, all as named shards of samples."""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from edgeclip.errors import DataError, TargetUnavailableError, UsageError
from edgeclip.train.data.damage import Damage
from edgeclip.train.recipe import Folders, Rows, Shards, Source

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "gif")
PIPE = "pipe:"
_ROWS = 1000
"""Rows of a table, or files of class folders, that make a shard."""


@dataclass(frozen=True)
class Sample:
    """One image with all that may be said of it."""

    key: str
    """Unique within the data: shard, then key."""
    image: bytes | Path
    """Encoded."""
    captions: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    """Of its class, where captions are made by templates."""


@dataclass(frozen=True)
class Shard:
    """Samples that are read one after the other. Shards can be sent to other processes."""

    name: str
    read: Callable[[Damage], Iterator[Sample]]
    """What cannot be read is counted by the `Damage` that is given."""
    repeat: float = 1.0
    file: Path | None = None
    """Where it lies, if it is a file."""


def open_shards(sources: Sequence[Source], root: str | Path, *, limit: int = 0) -> list[Shard]:
    """The shards of all sources, in order; nothing is read yet but tables' rows and folders' names.

    Args:
        root: where relative paths begin.
        limit: samples of each source; 0 means all.

    Raises:
        DataError: nothing is there.
        UsageError: a file is not of its kind.
        TargetUnavailableError: a library is not installed.
    """
    return [shard for source in sources for shard in _limited(_open(source, Path(root)), limit)]


def _open(source: Source, root: Path) -> list[Shard]:
    if isinstance(source, Shards):
        return _open_tars(source, root)
    if isinstance(source, Rows):
        return _open_rows(source, root)
    return _open_folders(source, root)


def _limited(shards: list[Shard], limit: int) -> list[Shard]:
    """The first samples of a source, from its first shards; each shard gives its part."""
    if not limit:
        return shards
    share, more = divmod(limit, len(shards))
    return [_first(shard, share + (i < more)) for i, shard in enumerate(shards) if share + (i < more)]


def _first(shard: Shard, count: int) -> Shard:
    return Shard(f"{shard.name}[:{count}]", partial(_read_first, shard, count), shard.repeat, shard.file)


def _read_first(shard: Shard, count: int, damage: Damage) -> Iterator[Sample]:
    return islice(shard.read(damage), count)


def _open_tars(source: Shards, root: Path) -> list[Shard]:
    urls = [url for pattern in source.urls for url in expand(pattern, root)]
    return [_tar(url, source.repeat) for url in urls]


def _tar(url: str, repeat: float) -> Shard:
    local = None if ":" in url.split("/")[0] else Path(url)
    name = (local.name if local else url).removesuffix(".gz").removesuffix(".tar")
    return Shard(name, partial(_read_tar, url, name), repeat, local)


def expand(pattern: str, root: Path) -> list[str]:
    """`{000..127}` and `*` of one entry, sorted; `pipe:` commands and URLs as they are.

    Raises:
        DataError: a path matches no file.
        TargetUnavailableError: webdataset is not installed.
    """
    webdataset = _webdataset()
    if pattern.startswith(PIPE):
        return [pattern]
    urls: list[str] = []
    for url in webdataset.shardlists.expand_urls(pattern):
        if ":" in url.split("/")[0]:
            urls.append(url)
            continue
        found = sorted(glob.glob(str(root / url)))  # noqa: PTH207 - the root may itself be a pattern of a user
        if not found:
            raise DataError(f"{url}: no such shard in {root}", hint="set data.root=... to the folder that has it")
        urls += found
    return urls


def _webdataset() -> Any:
    try:
        import webdataset
    except ModuleNotFoundError as exc:
        if exc.name != "webdataset":
            raise
        raise TargetUnavailableError(
            "reading shards needs webdataset, which is not installed", hint="pip install 'edgeclip[train]'"
        ) from exc
    return webdataset


def _read_tar(url: str, name: str, damage: Damage) -> Iterator[Sample]:
    """The samples of one tar. A tar that ends early gives those before its end, and counts as a torn shard."""
    webdataset = _webdataset()
    damage.begin_shard(name)

    def torn(exc: Exception) -> bool:
        damage.torn(name, exc)
        return False

    for fields in webdataset.tariterators.tarfile_samples([{"url": url}], handler=torn):
        try:
            yield _sample(fields, name)
        except (ValueError, KeyError, TypeError) as exc:
            damage.bad(f"{name}/{fields.get('__key__')}", exc)


def _sample(fields: Mapping[str, Any], shard: str) -> Sample:
    """One group of a tar's files.

    Raises:
        ValueError: it has no image or no text.
    """
    image = next((fields[suffix] for suffix in IMAGE_SUFFIXES if suffix in fields), None)
    if image is None:
        raise ValueError(f"no image among {', '.join(sorted(k for k in fields if not k.startswith('__')))}")
    captions, names = _texts(fields)
    if not captions and not names:
        raise ValueError("no caption")
    return Sample(f"{shard}/{fields['__key__']}", image, captions, names)


def _texts(fields: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Captions and class names of a sample."""
    if "json" not in fields:
        lines = fields["txt"].decode("utf-8").splitlines() if "txt" in fields else []
        return tuple(line.strip() for line in lines if line.strip()), ()
    described = json.loads(fields["json"])
    if not isinstance(described, dict):
        raise ValueError("its JSON is no object")
    captions = described.get("captions") or [c for c in [described.get("caption")] if c]
    return _strings(captions), _strings(described.get("names", []))


def _strings(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError("its captions or names are no list of strings")
    return tuple(dict.fromkeys(value.strip() for value in values if value.strip()))


def _open_rows(source: Rows, root: Path) -> list[Shard]:
    file = root / source.file
    if not file.is_file():
        raise DataError(f"{file}: no such table", hint="set data.root=... to the folder that has it")
    columns = (source.image, source.caption)
    pairs = (_parquet if file.suffix.lower() == ".parquet" else _csv)(file, columns)
    samples = [Sample(f"{file.name}/{i}", file.parent / image, (text,)) for i, (image, text) in enumerate(pairs)]
    return _listed(samples, file.name, source.repeat)


def _csv(file: Path, columns: tuple[str, str]) -> list[tuple[str, str]]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
        _require(file, columns, reader.fieldnames or ())
        return [(row[columns[0]], row[columns[1]]) for row in reader]


def _parquet(file: Path, columns: tuple[str, str]) -> list[tuple[str, str]]:
    try:
        import pyarrow.parquet as parquet
    except ModuleNotFoundError as exc:
        raise TargetUnavailableError(
            "reading Parquet needs pyarrow, which is not installed", hint="pip install 'edgeclip[parquet]'"
        ) from exc
    _require(file, columns, parquet.read_schema(file).names)
    table = parquet.read_table(file, columns=list(columns)).to_pydict()
    return list(zip(table[columns[0]], table[columns[1]], strict=True))


def _require(file: Path, columns: tuple[str, str], found: Sequence[str]) -> None:
    for column in columns:
        if column not in found:
            raise UsageError(f"{file.name}: no column {column!r}", hint=f"it has {', '.join(found)}")


def _open_folders(source: Folders, root: Path) -> list[Shard]:
    folder = root / source.folder
    classes = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not classes:
        raise DataError(f"{folder}: no class folders", hint="set data.root=... to the folder that has it")
    samples = [
        Sample(f"{source.folder}/{path.relative_to(folder)}", path, (), (one.name.replace("_", " "),))
        for one in classes
        for path in sorted(one.iterdir())
        if path.suffix.lower().lstrip(".") in IMAGE_SUFFIXES
    ]
    return _listed(samples, folder.name, source.repeat)


def _listed(samples: list[Sample], name: str, repeat: float) -> list[Shard]:
    if not samples:
        raise DataError(f"{name}: no samples")
    parts = [samples[start : start + _ROWS] for start in range(0, len(samples), _ROWS)]
    names = [f"{name}-{i:03d}" for i in range(len(parts))]
    return [Shard(one, partial(_read_list, part, one), repeat) for one, part in zip(names, parts, strict=True)]


def _read_list(samples: list[Sample], name: str, damage: Damage) -> Iterator[Sample]:
    damage.begin_shard(name)
    yield from samples
