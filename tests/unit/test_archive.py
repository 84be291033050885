"""The strict zip: what it refuses, and that the standard library reads what it writes."""

from __future__ import annotations

import io
import stat
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from edgeclip.archive import Archive, Writer
from edgeclip.errors import BundleFormatError, BundlePathError
from tests.bundles import zip_bytes

FILES = {"a.bin": b"alpha", "b/c.bin": b"gamma" * 100, "empty": b""}
GIB = 1 << 30


def written(files: dict[str, bytes] = FILES) -> bytes:
    buffer = io.BytesIO()
    writer = Writer(buffer)
    for name, data in files.items():
        writer.add(name, len(data), [data])
    writer.finish()
    return buffer.getvalue()


def scan(tmp_path: Path, data: bytes) -> Archive:
    path = tmp_path / "x.edgeclip"
    path.write_bytes(data)
    return scan_path(path)


def scan_path(path: Path) -> Archive:
    with path.open("rb") as file:
        return Archive.scan(path, file)


def read(archive: Archive, name: str) -> bytes:
    with archive.open(name) as file:
        return file.read(archive.sizes[name])


def refused(tmp_path: Path, data: bytes, match: str, error: type[Exception] = BundleFormatError) -> None:
    with pytest.raises(error, match=match) as caught:
        scan(tmp_path, data)
    assert "x.edgeclip" in str(caught.value)


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def central(data: bytes) -> int:
    return data.index(b"PK\x01\x02")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    archive = scan(tmp_path, written())
    assert {name: read(archive, name) for name in archive.sizes} == FILES


def test_standard_library_reads_what_is_written() -> None:
    with zipfile.ZipFile(io.BytesIO(written())) as archive:
        assert archive.testzip() is None
        assert {info.filename: archive.read(info) for info in archive.infolist()} == FILES
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {stat.filemode(info.external_attr >> 16) for info in archive.infolist()} == {"-rw-r--r--"}


def test_stored_zip_of_the_standard_library_is_read(tmp_path: Path) -> None:
    archive = scan(tmp_path, zip_bytes(FILES))
    assert {name: read(archive, name) for name in archive.sizes} == FILES


def test_checksum_finds_accidents(tmp_path: Path) -> None:
    archive = scan(tmp_path, written())
    assert archive.intact("a.bin", b"alpha")
    assert not archive.intact("a.bin", b"alphb")


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "C:/x", "a/./b", "CON", "x.", "a/"])
def test_entry_that_leaves_the_bundle_is_refused(tmp_path: Path, name: str) -> None:
    refused(tmp_path, zip_bytes({name: b"x"}), "path ", BundlePathError)


def test_backslash_in_a_name_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, zip_bytes({"a/x": b"x"}).replace(b"a/x", b"a\\x"), "only letters", BundlePathError)


def test_name_that_other_readers_cut_at_nul_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, zip_bytes({"ab.txt": b"x"}).replace(b"ab.txt", b"a\0.txt"), "only letters", BundlePathError)


def test_name_in_unicode_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, zip_bytes({"ﬁle": b"x"}), "only letters", BundlePathError)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_entries_are_refused(tmp_path: Path) -> None:
    data = zip_bytes([("a", b"1"), ("a", b"2")])
    refused(tmp_path, data, "two entries of the same name")


def test_entries_that_differ_in_case_only_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, zip_bytes({"a": b"1", "A": b"2"}), "'A': collides with 'a'", BundlePathError)


def test_symlink_entry_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    refused(tmp_path, zip_bytes([(info, b"/etc/passwd")]), "'link' is a symlink", BundlePathError)


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK, stat.S_IFDIR])
def test_entry_that_is_no_regular_file_is_refused(tmp_path: Path, kind: int) -> None:
    info = zipfile.ZipInfo("x")
    info.external_attr = (kind | 0o644) << 16
    refused(tmp_path, zip_bytes([(info, b"")]), "not a regular file", BundlePathError)


def test_encrypted_entry_is_refused(tmp_path: Path) -> None:
    data = written()
    data = patched(data, 6, b"\x01\x00")
    refused(tmp_path, patched(data, central(data) + 8, b"\x01\x00"), "is encrypted")


def test_entry_with_a_data_descriptor_is_refused(tmp_path: Path) -> None:
    data = written()
    data = patched(data, 6, b"\x08\x00")
    refused(tmp_path, patched(data, central(data) + 8, b"\x08\x00"), "is not plainly stored")


def test_compression_bomb_is_refused_from_the_directory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.edgeclip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a", "w") as entry:
        for _ in range(300):
            entry.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    with pytest.raises(BundleFormatError, match="is compressed: entries must be stored"):
        scan_path(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_65536_entries_are_refused_before_they_are_parsed(tmp_path: Path) -> None:
    path = tmp_path / "many.edgeclip"
    path.write_bytes(zip_bytes([(f"f{i}", b"") for i in range(65_536)]))
    tracemalloc.start()
    with pytest.raises(BundleFormatError, match=r"65535 entries, .*: the limits are 1024 and 1048576"):
        scan_path(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_directory_larger_than_its_limit_is_refused(tmp_path: Path) -> None:
    infos = [zipfile.ZipInfo(f"f{i}") for i in range(1000)]
    for info in infos:
        info.comment = b"x" * 1100
    refused(tmp_path, zip_bytes([(info, b"") for info in infos]), "1000 entries, a central directory of")


def test_entry_count_that_lies_is_refused(tmp_path: Path) -> None:
    data = written()
    end = len(data) - 22
    refused(tmp_path, patched(data, end + 8, struct.pack("<2H", 2, 2)), "holds more than its entries")
    refused(tmp_path, patched(data, end + 8, struct.pack("<2H", 4, 4)), "central directory is malformed")


@pytest.mark.parametrize("side", ["local", "central"])
@pytest.mark.parametrize("size", [4, 6, 1 << 31])
def test_header_that_lies_about_the_size_is_refused(tmp_path: Path, side: str, size: int) -> None:
    data = written()
    at = 18 if side == "local" else central(data) + 20
    refused(tmp_path, patched(data, at, struct.pack("<2I", size, size)), "contradicts the central directory")


def test_both_headers_that_lie_about_the_size_are_refused(tmp_path: Path) -> None:
    data = patched(written(), 18, struct.pack("<2I", 4, 4))
    data = patched(data, central(data) + 20, struct.pack("<2I", 4, 4))
    refused(tmp_path, data, "has no header|does not follow")


def test_wrong_checksum_in_one_header_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, patched(written(), 14, b"\0\0\0\0"), "contradicts the central directory")


def test_other_name_in_the_entry_itself_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, patched(written(), 30, b"z"), "contradicts the central directory")


def test_overlapping_entries_are_refused(tmp_path: Path) -> None:
    data = written({"a": b"x", "b": b"x"})
    second = data.index(b"PK\x01\x02", central(data) + 1)
    refused(tmp_path, patched(data, second + 42, struct.pack("<I", 0)), "does not follow the one before it")


def test_bytes_that_belong_to_no_entry_are_refused(tmp_path: Path) -> None:
    data = written()
    start = central(data)
    hidden = data[:start] + b"hidden" + data[start:-22] + patched(data[-22:], 16, struct.pack("<I", start + 6))
    refused(tmp_path, hidden, r"bytes \d+ to \d+ belong to no entry")


def test_prefix_is_refused_even_where_offsets_allow_for_it(tmp_path: Path) -> None:
    path = tmp_path / "x.edgeclip"
    path.write_bytes(b"#!/bin/sh\n" * 500)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a", b"x")
    with pytest.raises(BundleFormatError, match="not a bundle"):
        scan_path(path)


def test_prefix_that_is_an_entry_of_another_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.edgeclip"
    path.write_bytes(written()[:60])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a", b"x")
    with pytest.raises(BundleFormatError, match="does not follow the one before it"):
        scan_path(path)


@pytest.mark.parametrize("tail", [b"x", b"\0" * 22, b"PK\x05\x06", written()])
def test_trailing_bytes_are_refused(tmp_path: Path, tail: bytes) -> None:
    refused(tmp_path, written() + tail, "truncated, or has bytes after|does not lie where")


def test_comment_is_refused(tmp_path: Path) -> None:
    data = written()
    refused(tmp_path, data[:-2] + b"\x02\x00hi", "truncated, or has bytes after")
    refused(tmp_path, data[:-2] + b"\x02\x00", "several parts or a comment")


def test_truncated_archive_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    data = written()
    for end in range(0, len(data), 7):
        refused(tmp_path, data[:end], "truncated|not a bundle|does not lie where")


def test_extra_field_that_is_not_zip64_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("a")
    info.extra = struct.pack("<2H4s", 0x5455, 4, b"time")
    refused(tmp_path, zip_bytes([(info, b"x")]), "extra field that is not the zip64 one")


def test_local_zip64_sizes_are_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, archive.open("a", "w", force_zip64=True) as entry:
        entry.write(b"alpha")
    assert read(scan(tmp_path, buffer.getvalue()), "a") == b"alpha"


class Sparse(io.FileIO):
    """A file in which runs of zeros become holes."""

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if data.count(0) == len(data) and len(data) > 4096:
            self.seek(len(data), 1)
            return len(data)
        return super().write(data) or 0


def test_more_than_4_gib_are_written_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The checksum of 5 GiB of zeros takes seconds and is not what this is about.
    monkeypatch.setattr("edgeclip.archive.zlib.crc32", lambda data, crc=0: 0)
    path = tmp_path / "big.edgeclip"
    zeros = bytes(1 << 26)
    with Sparse(path, "w+") as file:
        writer = Writer(file)  # type: ignore[arg-type]
        writer.add("big", 5 * GIB, [zeros] * (5 * GIB // len(zeros)))
        writer.add("small", 5, [b"alpha"])
        writer.finish()
    archive = scan_path(path)
    assert archive.sizes == {"big": 5 * GIB, "small": 5}
    assert read(archive, "small") == b"alpha"
    with zipfile.ZipFile(path) as standard:
        assert [(info.filename, info.file_size) for info in standard.infolist()] == [("big", 5 * GIB), ("small", 5)]
        assert standard.getinfo("small").header_offset > 5 * GIB


def test_zip64_end_record_that_lies_is_refused(tmp_path: Path) -> None:
    data = written()
    forced = data[:-22] + patched(data[-22:], 16, struct.pack("<I", 0xFFFFFFFF))
    refused(tmp_path, forced, "zip64 end record is malformed")
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 2**60, 2**60, 2**61, central(data))
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, len(data) - 22, 1)
    refused(tmp_path, forced[:-22] + end64 + locator + forced[-22:], "1152921504606846976 entries")
