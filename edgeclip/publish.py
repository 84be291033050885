"""Publishing: an output appears whole or not at all, whatever happens to the process that writes it.

    lock -> sweep what dead writers left -> write a hidden sibling -> fsync -> rename over the output -> fsync again

A file is published with a replacing rename. A directory that replaces another is exchanged with it in one system call,
which only Linux offers; removing the old one first, or renaming twice, leaves a moment in which a crash loses both.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from edgeclip.errors import ExportExistsError, ExportLockedError, ResourceError, UsageError

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_BUNDLE_START = re.compile(rb'\s*\{\s*"format_version"\s*:')
_ZIP_START = re.compile(rb"PK\x03\x04.{22}\x0d\x00\x00\x00manifest\.json", re.DOTALL)
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_held = threading.local()


def fault_point(name: str) -> None:
    """Named step of a publication. Does nothing; a test replaces it to stop the process there."""


@contextmanager
def staged_file(path: Path, *, replace: bool, needed: int) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block ends, and vanishes when it raises.

    Args:
        path: the output. A symlink is followed, so that the link stays.
        replace: whether an existing bundle may be replaced.
        needed: bytes that will be written, for the message when they do not fit.

    Raises:
        ExportExistsError: the output exists, and `replace` is false or it is not a bundle.
        ExportLockedError: another export is writing the same output.
        ResourceError: the disk is full.
        UsageError: the output cannot be written at all.
    """
    path = _real(path)
    with _staged(path, replace=replace, needed=needed) as temp:
        with temp.open("xb") as file:
            fault_point("created")
            yield file
            fault_point("written")
            file.flush()
            os.fsync(file.fileno())
        fault_point("synced")
        check_output(path, replace=replace)
        temp.replace(path)


@contextmanager
def staged_directory(path: Path, *, replace: bool, needed: int) -> Iterator[Path]:
    """A new directory that takes the place of `path` when the block ends; otherwise as `staged_file`."""
    path = _real(path)
    with _staged(path, replace=replace, needed=needed) as temp:
        temp.mkdir()
        fault_point("created")
        yield temp
        fault_point("written")
        _sync_tree(temp)
        fault_point("synced")
        check_output(path, replace=replace)
        if os.path.lexists(path):
            _exchange(temp, path)
        else:
            temp.rename(path)


def check_output(path: Path, *, replace: bool) -> None:
    """Whether `path` is free, or ours to replace. Long work should ask before it begins.

    Raises:
        ExportExistsError: it exists, and `replace` is false or it is not a bundle.
        UsageError: its folder does not exist, or cannot be written to.
    """
    path = _real(path)
    check_folder(path)
    if not os.path.lexists(path):
        return
    if not _is_bundle(path):
        hint = "it will not be replaced: choose another name, or remove it yourself"
        raise ExportExistsError(f"{path}: exists and is not a bundle", hint=hint)
    if not replace:
        raise ExportExistsError(f"{path}: exists already", hint="replace it with --force (replace=True)")


def check_folder(path: Path) -> None:
    """
    Raises:
        UsageError: the folder of `path` does not exist, or cannot be written to.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"{path}: the directory {path.parent} does not exist", hint="make it first")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{path}: the directory {path.parent} cannot be written to", hint="choose another")


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the right to write `path`. The same thread may take it again inside.

    Raises:
        ExportLockedError: another process or thread holds it.
        UsageError: the directory does not exist or cannot be written.
    """
    path = _real(path)
    held: set[Path] = _held.__dict__.setdefault("paths", set())
    if path in held:
        yield
        return
    with _explained(path, 0):
        descriptor = _acquire(path)
    held.add(path)
    try:
        fault_point("locked")
        yield
    finally:
        held.discard(path)
        # Removed while it is still held, so that whoever waits for this very file notices that it is gone.
        with suppress(OSError):
            _lock_path(path).unlink()
        os.close(descriptor)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


@contextmanager
def _staged(path: Path, *, replace: bool, needed: int) -> Iterator[Path]:
    """A free temporary sibling of `path`, removed whatever happens, while the lock is held."""
    with lock(path), _explained(path, needed):
        check_output(path, replace=replace)
        _sweep(path)
        fault_point("swept")
        temp = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
        try:
            yield temp
            fault_point("replaced")
            _sync_directory(path.parent)
            fault_point("directory synced")
        finally:
            # Nothing, or what could not be finished, or the directory that was replaced.
            _remove(temp)


@contextmanager
def _explained(path: Path, needed: int) -> Iterator[None]:
    """Turn what the system says about writing `path` into our errors."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in _FULL:
            raise UsageError(f"{path}: cannot be written: {exc.strerror or exc}") from exc
        free = shutil.disk_usage(path.parent).free
        raise ResourceError(
            f"{path}: the disk or a quota is full: {needed} bytes needed, {free} free in {path.parent}",
            hint="what was there before is intact; free some space and run again",
        ) from exc


def _is_bundle(path: Path) -> bool:
    """Whether it was once written as a bundle, be it damaged now or of a version unknown here."""
    mode = path.lstat().st_mode
    if stat.S_ISDIR(mode):
        manifest = path / "manifest.json"
        return manifest.is_file() and not manifest.is_symlink() and bool(_BUNDLE_START.match(_head(manifest)))
    if not stat.S_ISREG(mode):
        return False
    head = _head(path)
    start = _ZIP_START.match(head)
    return bool(start and _BUNDLE_START.match(head, start.end()))


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(256)


def _lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _acquire(path: Path) -> int:
    """An open, locked descriptor of the lock file that has the lock's name now."""
    while True:
        descriptor = os.open(_lock_path(path), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock_descriptor(descriptor)
            if _names(_lock_path(path), descriptor):
                return descriptor
        except BaseException as exc:
            os.close(descriptor)
            if isinstance(exc, BlockingIOError):
                hint = "wait for it, or choose another output"
                raise ExportLockedError(f"{path}: another export is writing it", hint=hint) from exc
            raise
        # The holder before us removed the file when it was done: a lock on a removed file keeps nobody out.
        os.close(descriptor)


def _names(path: Path, descriptor: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


if sys.platform == "win32":
    import msvcrt

    def _lock_descriptor(descriptor: int) -> None:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError as exc:
            raise BlockingIOError(*exc.args) from exc
else:
    import fcntl

    def _lock_descriptor(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sweep(path: Path) -> None:
    """Remove what writers of `path` that are dead now left behind."""
    pattern = re.compile(re.escape(f".{path.name}.") + r"(\d+)-[0-9a-f]{8}\.tmp")
    for sibling in path.parent.iterdir():
        match = pattern.fullmatch(sibling.name)
        if match and not _alive(int(match[1])):
            _remove(sibling)


def _alive(pid: int) -> bool:
    if sys.platform == "win32":
        return False  # An open file cannot be removed there, so that trying does no harm.
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sync_tree(root: Path) -> None:
    for directory, _, files in os.walk(root):
        for name in files:
            with Path(directory, name).open("rb+") as file:
                os.fsync(file.fileno())
        _sync_directory(Path(directory))


def _sync_directory(path: Path) -> None:
    """Make a rename last. Windows and some network file systems have no such call, and need none."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def _exchange(new: Path, old: Path) -> None:
    """Swap two directories in one step. Source: renameat2(2)."""
    import ctypes  # Slow to import, and needed only here.

    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    code = errno.ENOSYS
    if swap is not None:
        if swap(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE) == 0:
            return
        code = ctypes.get_errno()
    if code not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        raise OSError(code, os.strerror(code))
    raise UsageError(
        f"{old}: a directory cannot be replaced in one step on this system",
        hint="use the one-file form, or write to a new name",
    )
