"""Memory for the contents of large files, and filling it."""

from __future__ import annotations

import hashlib
import mmap
import threading
from queue import SimpleQueue
from typing import BinaryIO, TypeAlias

Buffer: TypeAlias = bytes | bytearray | mmap.mmap
Writable: TypeAlias = bytearray | mmap.mmap

SMALL_BYTES = 4 << 20
PIECE_BYTES = 1 << 20


def allocate(size: int) -> Writable:
    """A buffer of `size` bytes that belongs to the caller alone.

    A large one is memory fresh from the system: a bytearray would be filled with zeros first, which for 0.35 GB takes
    as long as reading them.
    """
    if size < SMALL_BYTES or not hasattr(mmap, "MAP_ANONYMOUS"):
        return bytearray(size)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def fill(file: BinaryIO, buffer: Writable) -> tuple[int, str]:
    """Read until the buffer is full or the file ends; returns how much was read and the sha256 of that.

    Of a large buffer, one thread hashes the pieces that the other has read.
    """
    if len(buffer) < SMALL_BYTES:
        size = _read(file, memoryview(buffer))
        return size, hashlib.sha256(memoryview(buffer)[:size]).hexdigest()
    pieces: SimpleQueue[memoryview | None] = SimpleQueue()
    digest = hashlib.sha256()

    def consume() -> None:
        while (piece := pieces.get()) is not None:
            digest.update(piece)

    hasher = threading.Thread(target=consume, name="edgeclip-hash")
    hasher.start()
    view, size = memoryview(buffer), 0
    try:
        while size < len(view) and (n := _read(file, view[size : size + PIECE_BYTES])):
            pieces.put(view[size : size + n])
            size += n
    finally:
        pieces.put(None)
        hasher.join()
    return size, digest.hexdigest()


def _read(file: BinaryIO, view: memoryview) -> int:
    """A plain file may give less than was asked for; only nothing is the end."""
    size = 0
    while size < len(view) and (n := file.readinto(view[size:])):  # type: ignore[attr-defined]
        size += n
    return size
