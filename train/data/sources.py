"""Where pairs come from: WebDataset shards, tables and class folders, all as named shards of samples."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from edgeclip.errors import DataError, TargetUnavailableError, UsageError
from edgeclip.train.data.damage import Damage
from edgeclip.train.data.sample import IMAGE_SUFFIXES, Sample, Shard
from edgeclip.train.data.tars import expand, tar_shard
from edgeclip.train.recipe import Folders, Rows, Shards, Source

_ROWS = 1000
"""Rows of a table, or files of class folders, that make a shard."""


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
    opened = [_limited(_open(source, Path(root)), limit) for source in sources]
    return [replace(shard, source=i) for i, shards in enumerate(opened) for shard in shards]


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
    return [tar_shard(url, source.repeat) for url in urls]


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
