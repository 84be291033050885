"""The one-file form of a bundle: a zip of stored entries that tile the file from its first byte to its last.

Standard `zipfile` reads leniently (bytes before and after the archive, names cut at NUL, entries that overlap,
thousands of entries before the caller sees one) and its output differs between Python versions. Here nothing is
accepted that the writer below does not make: every byte of the file is accounted for, so that no two readers see
two archives.

    entry 0 | entry 1 | … | central directory | [zip64 end record | zip64 locator] | end record

Source: PKWARE APPNOTE 6.3.10, sections 4.3 to 4.5.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from edgeclip import paths
from edgeclip.errors import BundleFormatError, BundleIntegrityError, BundlePathError

MAX_ENTRIES = 1024
MAX_DIRECTORY_BYTES = 1 << 20
CHUNK = 1 << 18

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_END = struct.Struct("<4s4H2IH")
_FULL32 = 0xFFFFFFFF
_STORED = 0
_UTF8 = 0x800
_DATE_1980 = (1 << 5) | 1
_MADE_BY_UNIX = 3 << 8
_MODE = (stat.S_IFREG | 0o644) << 16


class Entry(NamedTuple):
    """Where an entry's bytes lie in the file."""

    offset: int
    size: int
    crc: int


class _Central(NamedTuple):
    """A record of the central directory."""

    name: bytes
    flags: int
    crc: int
    size: int
    offset: int
    mode: int


@dataclass(frozen=True)
class Archive:
    """A zip whose structure is checked. Entries are read by position; contents are for the caller to verify."""

    path: Path
    entries: dict[str, Entry]
    identity: tuple[int, int, int]
    """What tells the file from one that takes its place: device, inode, size."""

    @classmethod
    def scan(cls, path: Path, file: BinaryIO) -> Archive:
        """Read and check the archive's structure, but no contents. `path` is where `file` was opened.

        Raises:
            BundleFormatError: not a zip, or not one that this module would write.
            BundlePathError: an entry's name leaves the bundle, collides, or the entry is a symlink.
            OSError: the file cannot be read.
        """
        try:
            return cls(path, _entries(file), _identity(file))
        except (BundleFormatError, BundlePathError) as exc:
            raise type(exc)(f"{path}: {exc.message}", hint=exc.hint) from exc

    @property
    def sizes(self) -> dict[str, int]:
        return {name: entry.size for name, entry in self.entries.items()}

    def open(self, name: str) -> BinaryIO:
        """A file positioned at the entry's first byte. Whoever reads must stop at the entry's size.

        Raises:
            BundleIntegrityError: another file has taken the archive's place.
            OSError: the file cannot be opened.
        """
        file = paths.open_regular(self.path, follow=True)
        if _identity(file) != self.identity:
            file.close()
            raise BundleIntegrityError(f"{self.path}: replaced since it was opened", hint="open it again")
        file.seek(self.entries[name].offset)
        return file

    def intact(self, name: str, data: bytes) -> bool:
        """Whether the entry's checksum is that of `data`. Finds accidents; only a digest finds intent."""
        return zlib.crc32(data) == self.entries[name].crc


def _identity(file: BinaryIO) -> tuple[int, int, int]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size


def _entries(file: BinaryIO) -> dict[str, Entry]:
    if file.read(4) != b"PK\x03\x04":
        raise BundleFormatError("not a bundle: neither a zip file that starts with an entry nor a directory")
    count, size, start = _find_directory(file)
    file.seek(start)
    records = _parse_directory(file.read(size), count)
    entries = {}
    position = 0
    for record in records:
        entry = _locate(file, record, position)
        position = entry.offset + entry.size
        entries[record.name.decode()] = entry
    if position != start:
        raise BundleFormatError(f"bytes {position} to {start} belong to no entry")
    return entries


def _find_directory(file: BinaryIO) -> tuple[int, int, int]:
    """Number of entries, size and offset of the central directory, from the end record; bounded before it is read."""
    end = file.seek(0, 2) - _END.size
    file.seek(max(end, 0))
    tail = file.read()
    if len(tail) != _END.size or not tail.startswith(b"PK\x05\x06"):
        raise BundleFormatError(
            "the zip is truncated, or has bytes after its end record", hint="copy or export the bundle again"
        )
    _, disk, first_disk, here, count, size, start, comment = _END.unpack(tail)
    if disk or first_disk or here != count or comment:
        raise BundleFormatError("the zip has several parts or a comment")
    if _FULL32 in (size, start):
        count, size, start, end = _find_directory64(file, end)
    if count > MAX_ENTRIES or size > MAX_DIRECTORY_BYTES:
        limits = f"{MAX_ENTRIES} and {MAX_DIRECTORY_BYTES}"
        raise BundleFormatError(f"{count} entries, a central directory of {size} bytes: the limits are {limits}")
    if start + size != end:
        raise BundleFormatError("the central directory does not lie where the end record says")
    return count, size, start


def _find_directory64(file: BinaryIO, end: int) -> tuple[int, int, int, int]:
    """The same from the zip64 end record, and where that record starts."""
    start64 = end - _LOCATOR.size - _END64.size
    file.seek(max(start64, 0))
    tail = file.read(_END64.size + _LOCATOR.size)
    if start64 < 0 or len(tail) != _END64.size + _LOCATOR.size:
        raise BundleFormatError("the zip64 end record is missing")
    magic, length, _, _, disk, first_disk, here, count, size, start = _END64.unpack_from(tail)
    locator = _LOCATOR.unpack_from(tail, _END64.size)
    well_formed = (magic, length, disk, first_disk, here) == (b"PK\x06\x06", _END64.size - 12, 0, 0, count)
    if not well_formed or locator != (b"PK\x06\x07", 0, start64, 1):
        raise BundleFormatError("the zip64 end record is malformed")
    return count, size, start, start64


def _parse_directory(data: bytes, count: int) -> list[_Central]:
    records = []
    position = 0
    for _ in range(count):
        record, position = _parse_central(data, position)
        records.append(record)
    if position != len(data):
        raise BundleFormatError("the central directory holds more than its entries")
    names = [_text(record.name) for record in records]
    if len(set(names)) != len(names):
        raise BundleFormatError("the zip has two entries of the same name")
    paths.check_set(names)
    return records


def _parse_central(data: bytes, position: int) -> tuple[_Central, int]:
    if len(data) < position + _CENTRAL.size or data[position : position + 4] != b"PK\x01\x02":
        raise BundleFormatError("the central directory is malformed")
    fields = _CENTRAL.unpack_from(data, position)
    _, _, _, flags, method, _, _, crc, packed, size, n_name, n_extra, n_comment, disk, _, attributes, offset = fields
    name_end = position + _CENTRAL.size + n_name
    name = data[position + _CENTRAL.size : name_end]
    end = name_end + n_extra
    size, packed, offset = _widen(data[name_end:end], (size, packed, offset))
    if flags & ~_UTF8 or method != _STORED or n_comment or disk or size != packed:
        problem = "encrypted" if flags & 1 else "compressed" if method != _STORED else "not plainly stored"
        raise BundleFormatError(f"entry {name[: paths.MAX_LENGTH]!r} is {problem}: entries must be stored as they are")
    return _Central(name, flags, crc, size, offset, attributes >> 16), end


def _widen(extra: bytes, narrow: tuple[int, ...]) -> tuple[int, ...]:
    """Values of which those that do not fit in 32 bits stand in the zip64 extra field, in the same order."""
    n_wide = narrow.count(_FULL32)
    if not extra and not n_wide:
        return narrow
    if len(extra) != 4 + 8 * n_wide or extra[:4] != struct.pack("<2H", 1, 8 * n_wide) or not n_wide:
        raise BundleFormatError("an entry has an extra field that is not the zip64 one")
    wide = iter(struct.unpack(f"<{n_wide}Q", extra[4:]))
    return tuple(next(wide) if value == _FULL32 else value for value in narrow)


def _text(name: bytes) -> str:
    # Any byte has a meaning in latin-1; those outside ASCII are refused by the path rules.
    return name.decode("latin-1")


def _locate(file: BinaryIO, record: _Central, position: int) -> Entry:
    """Check an entry's own header, which must lie at `position` and say what the central directory says."""
    name = _text(record.name)
    if stat.S_IFMT(record.mode) not in (0, stat.S_IFREG):
        raise BundlePathError(f"entry {name!r} is {paths.kind(record.mode)}, not a regular file")
    if record.offset != position:
        raise BundleFormatError(f"entry {name!r} does not follow the one before it")
    file.seek(position)
    header = file.read(_LOCAL.size)
    if len(header) != _LOCAL.size or not header.startswith(b"PK\x03\x04"):
        raise BundleFormatError(f"entry {name!r} has no header")
    _, _, flags, method, _, _, crc, packed, size, n_name, n_extra = _LOCAL.unpack(header)
    same_name = file.read(n_name) == record.name
    size, packed = _widen(file.read(n_extra), (size, packed))
    if not same_name or (flags, method, crc, packed, size) != (
        record.flags,
        _STORED,
        record.crc,
        record.size,
        record.size,
    ):
        raise BundleFormatError(f"the header of entry {name!r} contradicts the central directory")
    return Entry(position + _LOCAL.size + n_name + n_extra, size, crc)


class Writer:
    """Writes stored entries into an empty seekable file; the same entries give the same bytes.

    `zipfile` is not used because it writes its directory even while an error is on its way out, on a full disk again.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._central: list[bytes] = []
        self._position = 0

    def add(self, name: str, size: int, chunks: Iterable[bytes]) -> None:
        """Append an entry. `chunks` must add up to `size` bytes."""
        start = self._position
        self._position += self._file.write(_local(name, size, 0))
        crc = 0
        for chunk in chunks:
            crc = zlib.crc32(chunk, crc)
            self._position += self._file.write(chunk)
        self._file.seek(start)
        self._file.write(_local(name, size, crc))
        self._file.seek(self._position)
        self._central.append(_central(name, size, crc, start))

    def finish(self) -> None:
        """Write the central directory and the end records."""
        start = self._position
        directory = b"".join(self._central)
        count = len(self._central)
        self._file.write(directory)
        if start >= _FULL32:
            version = 45
            end64 = (b"PK\x06\x06", _END64.size - 12, version, version, 0, 0, count, count, len(directory), start)
            self._file.write(_END64.pack(*end64))
            self._file.write(_LOCATOR.pack(b"PK\x06\x07", 0, start + len(directory), 1))
        end = (b"PK\x05\x06", 0, 0, count, count, len(directory), min(start, _FULL32), 0)
        self._file.write(_END.pack(*end))


def _wide(*values: int) -> bytes:
    """The zip64 extra field of those values that do not fit in 32 bits."""
    wide = [value for value in values if value >= _FULL32]
    return struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""


def _local(name: str, size: int, crc: int) -> bytes:
    extra = _wide(size, size)
    narrow = min(size, _FULL32)
    version = 45 if extra else 20
    fields = (b"PK\x03\x04", version, 0, _STORED, 0, _DATE_1980, crc, narrow, narrow, len(name), len(extra))
    return _LOCAL.pack(*fields) + name.encode("ascii") + extra


def _central(name: str, size: int, crc: int, offset: int) -> bytes:
    extra = _wide(size, size, offset)
    narrow = min(size, _FULL32)
    version = 45 if extra else 20
    fields = (b"PK\x01\x02", _MADE_BY_UNIX | version, version, 0, _STORED, 0, _DATE_1980, crc, narrow, narrow)
    rest = (len(name), len(extra), 0, 0, 0, _MODE, min(offset, _FULL32))
    return _CENTRAL.pack(*fields, *rest) + name.encode("ascii") + extra
