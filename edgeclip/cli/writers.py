"""Files of embeddings: `.npy`, `.npz`, `.parquet`, `.jsonl`. Rows are written as they come; a file appears when whole.

Each carries its provenance, because embeddings of different bundles, arithmetic or dtypes are not comparable.
"""

from __future__ import annotations

import errno
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from edgeclip.backends.base import Array
from edgeclip.cli.options import need
from edgeclip.cli.output import to_json
from edgeclip.errors import ResourceError, UsageError
from edgeclip.publish import check_folder

MAX_SOURCES_BYTES = 1 << 30
FLOAT32 = np.dtype("<f4")
DIGITS = {"float16": 5, "float32": 9}
"""Decimal digits that tell every such number from its neighbours."""


@dataclass(frozen=True)
class Rows:
    """Some embeddings, and what they are of."""

    kind: str
    """`image` or `text`."""
    sources: list[str]
    """The image's path, or the text."""
    embeddings: Array
    """[B, D] of the file's dtype; binary ones as bytes, [B, D / 8]."""


@dataclass(frozen=True)
class Columns:
    """What all rows of a file are."""

    count: int
    dtype: np.dtype[Any] = FLOAT32
    """In little-endian order."""


Write = Callable[[Rows], None]
Provenance = dict[str, Any]
Opened = AbstractContextManager[Write]


@contextmanager
def open_writer(path: Path, provenance: Provenance, columns: Columns) -> Iterator[Write]:
    """A function that writes rows to `path`, which takes the place of what was there when the block ends well.

    It refuses rows of another dtype with a TypeError.

    Raises:
        ResourceError: the disk is full.
        UsageError: it cannot be written.
    """
    with _explained(path), WRITERS[path.suffix.lower()](path, provenance, columns) as write:
        yield write


def write_text(path: Path, text: str) -> None:
    """Write a file of text, which takes the place of what was there when it is whole. Raises as `open_writer`."""
    with _explained(path), _staged(path) as temp:
        temp.write_text(text, encoding="utf-8")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what the system says about writing `path` into our errors."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ResourceError(f"{path}: the disk is full", hint="free some space and run again") from exc
        raise UsageError(f"{path}: cannot be written: {exc.strerror or exc}") from exc


def check_path(path: Path) -> None:
    """Whether `open_writer` can write there, asked before the work begins.

    Raises:
        UsageError: an unknown suffix, or no place for a file.
        TargetUnavailableError: the format's library is missing.
    """
    if path.suffix.lower() not in WRITERS:
        raise UsageError(f"{path}: unknown format {path.suffix!r}", hint=f"one of: {', '.join(WRITERS)}")
    check_place(path)
    if path.suffix.lower() == ".parquet":
        need("pyarrow", extra="parquet", what="writing Parquet")


def check_place(path: Path, suffix: str = "") -> None:
    """Whether a file can be written there, asked before the work begins.

    Args:
        suffix: what the name must end with, so that nothing of another kind is overwritten.

    Raises:
        UsageError: there is no place for a file, or it has another suffix.
    """
    if path.is_dir():
        raise UsageError(f"{path}: is a directory", hint="name a file")
    if not path.name.lower().endswith(suffix):
        raise UsageError(f"{path}: is to be a {suffix} file", hint=f"for instance {path.with_suffix(suffix)}")
    check_folder(path)


def check_sources(path: Path, sources: Sequence[str]) -> None:
    """Whether the format can hold the sources. In `.npz` each takes the room of the longest.

    Raises:
        UsageError: they would need more than 1 GiB.
    """
    needed = 4 * len(sources) * max(map(len, sources), default=0)
    if path.suffix.lower() == ".npz" and needed > MAX_SOURCES_BYTES:
        raise UsageError(f"{path}: the sources would take {needed} bytes in .npz", hint="use .parquet or .jsonl")


@contextmanager
def _staged(path: Path) -> Iterator[Path]:
    """A temporary sibling that becomes `path` when the block ends, and vanishes when it raises."""
    with _scratch(path) as temp:
        yield temp
        with temp.open("rb+") as file:
            os.fsync(file.fileno())
        temp.replace(path)


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """A name beside `path` that no other process uses; what has it at the end is removed."""
    temp = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    try:
        yield temp
    finally:
        temp.unlink(missing_ok=True)


@contextmanager
def jsonl_lines(stream: TextIO, provenance: Provenance) -> Iterator[Write]:
    """JSON lines on an open stream: the provenance first, then one line a row."""
    stream.write(to_json({"provenance": provenance}, stream) + "\n")

    def write(rows: Rows) -> None:
        for line in described(rows):
            stream.write(to_json(line, stream) + "\n")
        stream.flush()

    yield write


def described(rows: Rows) -> Iterator[dict[str, Any]]:
    """Rows as JSON objects."""
    digits = DIGITS.get(rows.embeddings.dtype.name)
    for source, row in zip(rows.sources, rows.embeddings.tolist(), strict=True):
        numbers = row if digits is None else [float(f"{value:.{digits}g}") for value in row]
        yield {"kind": rows.kind, "source": source, "embedding": numbers}


@contextmanager
def _jsonl(path: Path, provenance: Provenance, columns: Columns) -> Iterator[Write]:
    with _staged(path) as temp, temp.open("w", encoding="utf-8") as file, jsonl_lines(file, provenance) as write:
        yield write


@contextmanager
def _npy(path: Path, provenance: Provenance, columns: Columns) -> Iterator[Write]:
    """The matrix, and beside it `NAME.npy.json` with the sources and the provenance."""
    sources: list[str] = []
    kinds: list[str] = []
    # The side file is there before the matrix is.
    with _staged(path) as temp, _staged(path.with_name(f"{path.name}.json")) as side:
        with _matrix(temp, columns, sources, kinds) as write:
            yield write
        side.write_text(json.dumps({"provenance": provenance, "kinds": kinds, "sources": sources}), encoding="utf-8")


@contextmanager
def _npz(path: Path, provenance: Provenance, columns: Columns) -> Iterator[Write]:
    """`embeddings` [N, D], `sources`, `kinds` and `provenance` (JSON) as strings."""
    sources: list[str] = []
    kinds: list[str] = []
    with _staged(path) as temp, _scratch(path) as matrix:
        with _matrix(matrix, columns, sources, kinds) as write:
            yield write
        with zipfile.ZipFile(temp, "w", zipfile.ZIP_STORED) as archive:
            archive.write(matrix, "embeddings.npy")
            for name, value in (("sources", sources), ("kinds", kinds), ("provenance", json.dumps(provenance))):
                archive.writestr(f"{name}.npy", _array_bytes(np.array(value, dtype=np.str_)))


@contextmanager
def _parquet(path: Path, provenance: Provenance, columns: Columns) -> Iterator[Write]:
    """Columns `source`, `kind`, `embedding`; the provenance, JSON, is in the schema's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.from_numpy_dtype(columns.dtype)
    fields = [("source", pa.string()), ("kind", pa.string()), ("embedding", pa.list_(kind, columns.count))]
    schema = pa.schema(fields, metadata={"provenance": json.dumps(provenance)})
    with _staged(path) as temp, pq.ParquetWriter(temp, schema) as writer:

        def write(rows: Rows) -> None:
            numbers = pa.array(_checked(rows.embeddings, columns).ravel())
            vectors = pa.FixedSizeListArray.from_arrays(numbers, columns.count)
            found = [pa.array(rows.sources), pa.array([rows.kind] * len(rows.sources)), vectors]
            writer.write_table(pa.Table.from_arrays(found, schema=schema))

        yield write


WRITERS: dict[str, Callable[[Path, Provenance, Columns], Opened]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".parquet": _parquet,
    ".jsonl": _jsonl,
}


@contextmanager
def _matrix(path: Path, columns: Columns, sources: list[str], kinds: list[str]) -> Iterator[Write]:
    """An `.npy` file whose number of rows is not known before the end; sources and kinds are collected."""
    with path.open("wb") as file:
        file.write(_header(0, columns))

        def write(rows: Rows) -> None:
            file.write(_checked(rows.embeddings, columns).tobytes())
            sources.extend(rows.sources)
            kinds.extend([rows.kind] * len(rows.sources))

        yield write
        _rewrite_header(file, len(sources), columns)


def _checked(embeddings: Array, columns: Columns) -> Array:
    """A cast would make zeros of floats, or floats of bits."""
    return embeddings.astype(columns.dtype, casting="equiv", copy=False)


def _rewrite_header(file: BinaryIO, rows: int, columns: Columns) -> None:
    header = _header(rows, columns)
    assert len(header) == len(_header(0, columns))  # the format leaves room for the first axis to grow
    file.seek(0)
    file.write(header)


def _header(rows: int, columns: Columns) -> bytes:
    out = io.BytesIO()
    shape = (rows, columns.count)
    np.lib.format.write_array_header_1_0(out, {"descr": columns.dtype.str, "fortran_order": False, "shape": shape})
    return out.getvalue()


def _array_bytes(array: np.ndarray[Any, Any]) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, allow_pickle=False)
    return out.getvalue()
