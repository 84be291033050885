"""Contents of a bundle's files as runs of bytes, so that none need fit in memory; hashed as they pass.

A run ends with an error when the whole was not what the manifest says: nothing may be published before its end.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from edgeclip import archive, manifest, paths, publish
from edgeclip.errors import BundleIntegrityError, UsageError
from edgeclip.manifest import FileEntry, Manifest


def write_archive(file: BinaryIO, data: bytes, content: Manifest, contents: Mapping[str, Iterable[bytes]]) -> None:
    """Write a bundle as one file. `data` is the encoded manifest `content`."""
    writer = archive.Writer(file)
    writer.add(manifest.NAME, len(data), [data])
    for entry in content.files:
        writer.add(entry.path, entry.size, contents[entry.path])
        publish.fault_point(f"entry {entry.path}")
    writer.finish()


def write_tree(root: Path, data: bytes, contents: Mapping[str, Iterable[bytes]]) -> None:
    """Write a bundle as a directory.

    The manifest is written last: a tree that lacks it is known to be incomplete, however it was copied.
    """
    for name, chunks in {**contents, manifest.NAME: [data]}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with (root / name).open("xb") as file:
            file.writelines(chunks)
        publish.fault_point(f"entry {name}")


def copied(content: bytes | Path, entry: FileEntry) -> Iterator[bytes]:
    """The content of a new file. Raises BundleIntegrityError when it is no longer what `entry` says."""

    def check(size: int, digest: str, _: bytes) -> None:
        if (size, digest) != (entry.size, entry.sha256):
            raise BundleIntegrityError(f"{entry.path}: changed while it was being written", hint="run again")

    with _open_content(content) as file:
        yield from verified(file, entry, check)


def verified(file: BinaryIO, entry: FileEntry, check: Callable[[int, str, bytes], None]) -> Iterator[bytes]:
    """Pieces of a file up to its size; `check` gets the size, digest and first piece at the end."""
    digest = hashlib.sha256()
    size = 0
    head = b""
    while size < entry.size and (piece := file.read(min(archive.CHUNK, entry.size - size))):
        head = head or piece
        size += len(piece)
        digest.update(piece)
        yield piece
    check(size, digest.hexdigest(), head)


def describe(name: str, content: bytes | Path) -> FileEntry:
    """Size and digest of a new file. Raises UsageError when it cannot be read."""
    digest = hashlib.sha256()
    size = 0
    try:
        with _open_content(content) as file:
            while piece := file.read(archive.CHUNK):
                size += len(piece)
                digest.update(piece)
    except OSError as exc:
        raise UsageError(f"{content!s}: cannot be read for {name}: {exc.strerror or exc}") from exc
    return FileEntry(path=name, size=size, sha256=digest.hexdigest())


def _open_content(content: bytes | Path) -> BinaryIO:
    return paths.open_regular(content, follow=True) if isinstance(content, Path) else io.BytesIO(content)
