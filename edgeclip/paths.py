"""Names of files in a bundle: only those that mean one place, inside the bundle, on every system.

And how one is opened: only if it is a regular file.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from edgeclip.errors import BundlePathError

MAX_LENGTH = 200
IGNORED = frozenset({".DS_Store", "Thumbs.db"})
"""What file managers leave in a directory. A bundle may not list them; in a directory they are passed over unread."""

_ALLOWED = re.compile(r"[A-Za-z0-9._/-]+")
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Windows opens a device for these, whatever the extension. Source: learn.microsoft.com, "Naming Files, Paths"."""

# Windows lacks all but O_BINARY, POSIX lacks O_BINARY. O_NONBLOCK keeps a FIFO from blocking the open.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOCTTY", 0)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)


def check(path: str) -> None:
    """Refuse a name that could leave the bundle or mean different files on different systems.

    Raises:
        BundlePathError: naming the path and the rule that it breaks.
    """
    problem = _problem(path)
    if problem:
        raise BundlePathError(f"path {path[:MAX_LENGTH]!r}: {problem}")


def check_set(paths: Iterable[str]) -> None:
    """Check each name, and that all of them can lie side by side where case does not matter.

    Raises:
        BundlePathError: a name is refused, collides with another, or is both a file and a directory.
    """
    seen: dict[str, str] = {}
    for path in paths:
        check(path)
        # No Unicode normalisation: `check` lets only ASCII pass.
        key = path.casefold()
        if key in seen:
            raise BundlePathError(f"path {path!r}: collides with {seen[key]!r}")
        seen[key] = path
    for key, path in seen.items():
        parts = key.split("/")
        for end in range(1, len(parts)):
            if (parent := "/".join(parts[:end])) in seen:
                raise BundlePathError(f"path {path!r}: {seen[parent]!r} is a file")


def _problem(path: str) -> str | None:
    if not path or len(path) > MAX_LENGTH:
        return f"{len(path)} characters long, 1 to {MAX_LENGTH} are allowed"
    if not _ALLOWED.fullmatch(path):
        return "only letters, digits and . _ / - are allowed"
    for part in path.split("/"):
        if part in ("", ".", ".."):
            return "absolute, or has an empty, `.` or `..` segment"
        if part.endswith("."):
            return "a segment ends with a dot"
        if _DEVICE.fullmatch(part):
            return f"{part!r} is a device on Windows"
        if part in IGNORED:
            return f"{part!r} is what a file manager leaves behind"
    return None


def open_regular(path: Path, *, follow: bool = False) -> BinaryIO:
    """Open a regular file for reading; never blocks on a FIFO, and follows a symlink only when told to.

    Raises:
        BundlePathError: it is a symlink, directory, FIFO, device or socket.
        OSError: it cannot be opened.
    """
    # Looked at before it is opened, because opening a device can act on it; and after, because it may be another then.
    _require_regular(path, path.stat() if follow else path.lstat())
    descriptor = os.open(path, _FLAGS | (0 if follow else _NOFOLLOW))
    try:
        _require_regular(path, os.fstat(descriptor))
        return open(descriptor, "rb")  # noqa: PTH123 - a descriptor, not a path
    except BaseException:
        os.close(descriptor)
        raise


def _require_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise BundlePathError(f"{path}: {kind(status.st_mode)}, not a regular file")


def kind(mode: int) -> str:
    """What a mode says a file is, in words."""
    names = {
        stat.S_IFLNK: "a symlink",
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return names.get(stat.S_IFMT(mode), "a special file")
