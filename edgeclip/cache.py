"""The user's cache directory: files that can be made again, each guarded by its own digest.

A cache is never a reason to fail: where it cannot be used, one warning says why and everything is computed afresh.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import sys
import tempfile
import warnings
from pathlib import Path

from edgeclip.buffers import Buffer

_DIGEST_BYTES = 32
_FLAGS = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))

said = logging.getLogger("edgeclip.cache")


class CacheWarning(UserWarning):
    """The cache directory cannot be used; edgeclip works without it."""


def fingerprint(*parts: object) -> str:
    """A short name for a combination of facts, [0-9a-f]{32}."""
    text = "\0".join(str(part) for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def directory() -> Path | None:
    """The cache directory, made if need be, or None (with a warning) where it is not ours alone to write.

    `EDGECLIP_CACHE` names it; otherwise the platform's usual place.
    """
    path = _location()
    if path is None:
        _warn("no home directory", "set EDGECLIP_CACHE")
        return None
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = path.stat()
    except OSError as exc:
        _warn(f"{path}: {exc.strerror}", "set EDGECLIP_CACHE to a directory that can be written")
        return None
    if _of_another(info):
        _warn(f"{path} belongs to another user", "set EDGECLIP_CACHE")
        return None
    if _open_to_others(info):
        _warn(f"{path} can be written by other users", f"chmod go-w {path}")
        return None
    if not os.access(path, os.W_OK | os.X_OK):
        _warn(f"{path} cannot be written", "set EDGECLIP_CACHE")
        return None
    return path


def content_digest(data: Buffer) -> str:
    """sha256 of some bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def read(name: str) -> bytes | None:
    """The entry, or None where there is none or its bytes are not those that were written."""
    view = load(name)
    return None if view is None else bytes(view)


def load(name: str) -> memoryview | None:
    """As `read`, in memory that holds the entry once. Why an entry is not used is logged."""
    root = directory()
    if root is None:
        return None
    try:
        data = _read(root, root / name)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        said.warning("%s is not used: %s", root / name, getattr(exc, "strerror", None) or exc)
        return None
    digest, payload = data[:_DIGEST_BYTES], memoryview(data)[_DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() == digest:
        return payload
    said.warning("%s is not used: it is not what was written", root / name)
    return None


def write(name: str, *parts: Buffer | memoryview) -> None:
    """Keep an entry, the parts one after the other; readers see the old one or the new one, whole."""
    root = directory()
    if root is None:
        return
    target = root / name
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temp = tempfile.mkstemp(dir=target.parent, prefix=".tmp-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(digest.digest())
                for part in parts:
                    file.write(part)
            Path(temp).replace(target)
        except BaseException:
            Path(temp).unlink(missing_ok=True)
            raise
    except OSError as exc:
        _warn(f"{target}: {exc.strerror}", "free space or set EDGECLIP_CACHE")


def _read(root: Path, path: Path) -> bytes:
    """A file that nobody else can have written, in folders of which the same is true.

    Raises:
        ValueError: saying which is not.
    """
    for folder in path.parents:
        if folder == root:
            break
        _require_ours(folder.stat(), f"{folder} ")
    with os.fdopen(os.open(path, os.O_RDONLY | _FLAGS), "rb") as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise ValueError("it is not a plain file")
        _require_ours(info, "it ")
        return file.read()


def _require_ours(info: os.stat_result, what: str) -> None:
    if _of_another(info):
        raise ValueError(f"{what}belongs to another user")
    if _open_to_others(info):
        raise ValueError(f"{what}can be written by other users")


def _of_another(info: os.stat_result) -> bool:
    return hasattr(os, "getuid") and info.st_uid != os.getuid()


def _open_to_others(info: os.stat_result) -> bool:
    return os.name == "posix" and bool(info.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _location() -> Path | None:
    named = os.environ.get("EDGECLIP_CACHE")
    if named:
        return Path(named)
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "edgeclip"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")) / "edgeclip" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "edgeclip"


def _warn(what: str, hint: str) -> None:
    warnings.warn(f"working without a cache: {what} ({hint})", CacheWarning, stacklevel=3)
