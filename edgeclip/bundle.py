"""The bundle: the one door through which any file reaches an engine.

    manifest, bounded and strict -> path rules -> the set of files -> sizes -> sha256 -> what the graph may contain

Engines do not detect corruption, they compute something else. So the bytes that were hashed are the very bytes that are
handed out, and nothing is handed out that was not hashed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

import msgspec

from edgeclip import graphcheck, manifest, paths, pieces, publish
from edgeclip.archive import Archive
from edgeclip.buffers import Buffer, Writable, allocate, fill
from edgeclip.errors import (
    BundleError,
    BundleFormatError,
    BundleIntegrityError,
    BundleNotFoundError,
    ExportExistsError,
    ResourceError,
    UsageError,
)
from edgeclip.folder import Folder
from edgeclip.manifest import Artifact, FileEntry, Manifest

MANIFEST = manifest.NAME
_LFS_START = b"version https://git-lfs.github.com/spec/"
_LFS_HINT = "a Git LFS pointer: run git lfs pull"


class _Source(Protocol):
    """Where the files lie: `Archive` or `Folder`."""

    @property
    def sizes(self) -> dict[str, int]: ...

    def open(self, name: str) -> BinaryIO: ...

    def intact(self, name: str, data: bytes) -> bool: ...


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle whose manifest and structure are checked. Holds no file open; any number of threads may read."""

    path: Path
    manifest: Manifest
    digest: str
    """`sha256:` and the hex digest of `manifest.json`, which has the digests of all other files."""
    _source: _Source = field(repr=False)
    _manifest_bytes: bytes = field(repr=False)

    @classmethod
    def open(cls, path: str | Path, *, expect_digest: str | None = None) -> Bundle:
        """Open a bundle file or directory. Checks everything but the contents of the files that the manifest lists.

        Args:
            path: a `.edgeclip` file, or the same tree as a directory.
            expect_digest: what `digest` must be. When it is not, nothing but the manifest was read.

        Raises:
            BundleNotFoundError: nothing is there.
            BundleFormatError: it is not a bundle, or breaks a rule of the format.
            BundleVersionError: a newer edgeclip wrote it.
            BundlePathError: a path leaves the bundle, or something in it is not a regular file.
            BundleIntegrityError: a file is missing, superfluous or of another size, or the digest is not the
                expected one.
        """
        path = Path(path)
        if expect_digest is not None and not re.fullmatch("sha256:[0-9a-f]{64}", expect_digest):
            raise UsageError(f"expect_digest {expect_digest!r} is not `sha256:` and 64 hex digits")
        inode = _inode(path)
        try:
            return cls._open(path, expect_digest)
        except BundleError:
            if _inode(path) == inode:
                raise
            # Half of a directory was read before it was exchanged for a new one, half after.
            return cls._open(path, expect_digest)

    @classmethod
    def _open(cls, path: Path, expect_digest: str | None) -> Bundle:
        with _reading(path):
            source, data = _open_folder(path) if path.is_dir() else _open_file(path)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if expect_digest not in (None, digest):
            raise BundleIntegrityError(f"{path}: the bundle's digest is {digest}, expected {expect_digest}")
        if not source.intact(MANIFEST, data) and len(data) <= manifest.MAX_BYTES:
            raise BundleIntegrityError(f"{path}: {MANIFEST} is damaged", hint="copy or export the bundle again")
        try:
            content = manifest.decode(data)
        except BundleError as exc:
            raise type(exc)(f"{path}: {exc.message}", hint=exc.hint) from exc
        bundle = cls(path, content, digest, source, data)
        bundle._check_sizes()
        return bundle

    def read(self, name: str) -> bytes:
        """The verified content of a file.

        Raises:
            BundleIntegrityError: its size or sha256 is not what the manifest says.
            UsageError: the manifest lists no such file.
            ResourceError: it does not fit in memory.
        """
        return bytes(self._load(self._entry(name)))

    def files(self, artifact: Artifact) -> dict[str, Buffer]:
        """The verified contents of an artifact's files, by path, safe to hand to an engine.

        Each is a buffer of its own, which an engine may keep without copying it.

        Raises:
            BundleFormatError, BundlePathError: a graph contains what it may not.
            TargetLoadError: a file is a prebuilt engine.
            And as `read`.
        """
        contents: dict[str, Buffer] = {name: self._load(self._entry(name)) for name in artifact.files}
        graphcheck.check_graph(artifact, contents)
        return contents

    def artifacts(
        self, *, tower: str | None = None, target: str | None = None, precision: str | None = None
    ) -> list[Artifact]:
        """The artifacts that match, in the manifest's order."""
        wanted = {"tower": tower, "target": target, "precision": precision}
        return [
            artifact
            for artifact in self.manifest.artifacts
            if all(value is None or getattr(artifact, key) == value for key, value in wanted.items())
        ]

    def loose_files(self) -> list[str]:
        """Files that the model does not need: the manifest lists them, and nothing in it refers to them."""
        used = set(manifest.named(self.manifest).values())
        return [entry.path for entry in self.manifest.files if entry.path not in used]

    def verify_files(self) -> None:
        """Hash every file, in pieces. Raises BundleIntegrityError for the first that differs."""
        for entry in self.manifest.files:
            for _ in self.pieces(entry):
                pass

    def unpack(self, directory: str | Path) -> None:
        """Write the same tree to a new directory, which appears when it is complete and verified.

        Raises:
            ExportExistsError: the directory exists.
            And as `read` and `publish.staged_directory`.
        """
        contents = {entry.path: self.pieces(entry) for entry in self.manifest.files}
        with publish.staged_directory(Path(directory), replace=False, needed=_total(self.manifest)) as temp:
            pieces.write_tree(temp, self._manifest_bytes, contents)

    def pieces(self, entry: FileEntry) -> Iterator[bytes]:
        """A file in pieces, of which none is verified before the last; then come the errors of `read`."""
        with _reading(self.path), self._source.open(entry.path) as file:
            yield from pieces.verified(file, entry, lambda *found: self._check(entry, *found))

    def _load(self, entry: FileEntry) -> Writable:
        with _reading(self.path), self._source.open(entry.path) as file:
            data = allocate(entry.size)
            size, digest = fill(file, data)
        self._check(entry, size, digest, bytes(data[: len(_LFS_START)]))
        return data

    def _entry(self, name: str) -> FileEntry:
        for entry in self.manifest.files:
            if entry.path == name:
                return entry
        raise UsageError(f"{self.path}: the bundle lists no file {name!r}")

    def _check(self, entry: FileEntry, size: int, digest: str, head: bytes) -> None:
        if size != entry.size:
            raise self._broken(entry.path, f"{size} bytes", f"{entry.size}", head)
        if digest != entry.sha256:
            raise self._broken(entry.path, f"sha256 {digest}", entry.sha256, head)

    def _broken(self, name: str, actual: str, expected: str, head: bytes) -> BundleIntegrityError:
        hint = _LFS_HINT if head.startswith(_LFS_START) else "copy or export the bundle again"
        return BundleIntegrityError(f"{self.path}: {name} has {actual}, expected {expected}", hint=hint)

    def _check_sizes(self) -> None:
        """The files that are there must be those of the manifest, each of its size."""
        found = dict(self._source.sizes)
        found.pop(MANIFEST)
        expected = {entry.path: entry.size for entry in self.manifest.files}
        if missing := expected.keys() - found:
            raise BundleIntegrityError(f"{self.path}: the bundle lacks {_listing(missing)}")
        if extra := found.keys() - expected:
            raise BundleIntegrityError(f"{self.path}: the manifest does not list {_listing(extra)}")
        for name, size in expected.items():
            if found[name] != size:
                raise self._broken(name, f"{found[name]} bytes", f"{size}", self._head(name, found[name]))

    def _head(self, name: str, size: int) -> bytes:
        with _reading(self.path), self._source.open(name) as file:
            return file.read(min(size, len(_LFS_START)))


def write_bundle(path: str | Path, manifest: Manifest, files: Mapping[str, bytes | Path], *, replace: bool) -> Bundle:
    """Write a bundle. The same manifest and files give the same bytes.

    Where a bundle directory stands at `path`, the new one is a directory, too; else it is one file.

    Args:
        path: the output.
        manifest: its `files` are computed here from the contents.
        files: path in the bundle to its content, or to the file that has it.
        replace: whether an existing bundle may be replaced.

    Raises:
        BundleFormatError, BundlePathError: the manifest and the files do not make a valid bundle.
        UsageError: a file cannot be read.
        And as `publish.staged_file`.
    """
    entries = tuple(pieces.describe(name, files[name]) for name in sorted(files))
    contents = {entry.path: pieces.copied(files[entry.path], entry) for entry in entries}
    return _write(Path(path), msgspec.structs.replace(manifest, files=entries), contents, replace=replace)


def add_artifact(bundle: Bundle, artifact: Artifact, files: Mapping[str, bytes], *, replace: bool = False) -> Bundle:
    """Add one artifact to the bundle at `bundle.path`. See `add_artifacts`."""
    return add_artifacts(bundle, [artifact], files, replace=replace)


def add_artifacts(
    bundle: Bundle,
    artifacts: Sequence[Artifact],
    files: Mapping[str, bytes],
    *,
    output: Path | None = None,
    replace: bool = False,
    beside: Callable[[Manifest], Mapping[str, bytes]] = lambda manifest: {},
) -> Bundle:
    """Add artifacts to the bundle at `bundle.path`, which is rewritten whole, or write it with them to `output`.

    It is opened anew under the lock, so that what another export has added meanwhile stays. Its other files are
    verified on the way.

    Args:
        beside: makes loose files of the new manifest; they replace those of the same names.

    Raises:
        ExportExistsError: the bundle has this tower, target and precision, and `replace` is false; or a file of that
            name that belongs to something else.
        UsageError: `files` are not the artifacts' files.
        And as `write_bundle` and `Bundle.read`.
    """
    named = {name for artifact in artifacts for name in artifact.files}
    if set(files) != named:
        raise UsageError(f"the artifact names the files {_listing(named)}, but {_listing(files)} are given")
    path = output or bundle.path
    with publish.lock(path):
        bundle = Bundle.open(bundle.path)
        kept, entries = _without(bundle, artifacts, replace=replace)
        if taken := {entry.path for entry in entries} & set(files):
            raise ExportExistsError(f"{bundle.path}: {_listing(taken)} belongs to something else in the bundle")
        changed = msgspec.structs.replace(bundle.manifest, artifacts=tuple(sorted([*kept, *artifacts], key=_key)))
        loose = beside(changed)
        entries = [entry for entry in entries if entry.path not in loose]
        return _rewrite(bundle, changed, entries, {**files, **loose}, path)


def put_file(bundle: Bundle, name: str, content: bytes) -> Bundle:
    """Put a file that no artifact needs into the bundle at `bundle.path`, which is rewritten whole.

    One of that name is replaced. The bundle is opened anew, as in `add_artifact`.

    Raises:
        UsageError: an artifact, the tokenizer or the golden vectors have that name.
        And as `write_bundle` and `Bundle.read`.
    """
    with publish.lock(bundle.path):
        bundle = Bundle.open(bundle.path)
        kept = [entry for entry in bundle.manifest.files if entry.path != name]
        if len(kept) < len(bundle.manifest.files) and name not in bundle.loose_files():
            raise UsageError(f"{bundle.path}: {name!r} belongs to the model")
        return _rewrite(bundle, bundle.manifest, kept, {name: content}, bundle.path)


def _rewrite(
    bundle: Bundle, changed: Manifest, kept: Iterable[FileEntry], new: Mapping[str, bytes], path: Path
) -> Bundle:
    """Write the bundle anew with the manifest's changes, the files that are kept, and new ones."""
    entries = list(kept)
    contents: dict[str, Iterable[bytes]] = {entry.path: bundle.pieces(entry) for entry in entries}
    for name, content in new.items():
        entries.append(pieces.describe(name, content))
        contents[name] = pieces.copied(content, entries[-1])
    changed = msgspec.structs.replace(changed, files=tuple(sorted(entries, key=lambda entry: entry.path)))
    return _write(path, changed, contents, replace=True)


def _without(bundle: Bundle, artifacts: Sequence[Artifact], *, replace: bool) -> tuple[list[Artifact], list[FileEntry]]:
    """The artifacts and files that stay when others are put in."""
    keys = {_key(artifact) for artifact in artifacts}
    old = [other for other in bundle.manifest.artifacts if _key(other) in keys]
    if old and not replace:
        name = " ".join(_key(old[0]))
        raise ExportExistsError(f"{bundle.path}: already has the artifact {name}", hint="replace it with --force")
    kept = [other for other in bundle.manifest.artifacts if other not in old]
    gone = {name for other in old for name in other.files} - {name for other in kept for name in other.files}
    return kept, [entry for entry in bundle.manifest.files if entry.path not in gone]


def _key(artifact: Artifact) -> tuple[str, str, str]:
    return artifact.tower, artifact.target, artifact.precision


def _write(path: Path, content: Manifest, contents: Mapping[str, Iterable[bytes]], *, replace: bool) -> Bundle:
    data = manifest.encode(content)
    manifest.decode(data)  # What could not be opened must not be written.
    needed = _total(content) + len(data)
    with publish.lock(path):
        if path.is_dir():
            with publish.staged_directory(path, replace=replace, needed=needed) as temp:
                pieces.write_tree(temp, data, contents)
        else:
            with publish.staged_file(path, replace=replace, needed=needed) as file:
                pieces.write_archive(file, data, content, contents)
        return Bundle.open(path)


def _total(content: Manifest) -> int:
    return sum(entry.size for entry in content.files)


def _listing(names: Iterable[str], limit: int = 5) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return ", ".join(repr(name) for name in ordered[:limit]) + more


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what the system says about reading a bundle into our errors."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as exc:
        if path.exists():
            raise BundleIntegrityError(f"{path}: the bundle lacks {exc.filename}") from exc
        raise BundleNotFoundError(f"{path}: no such file or directory") from exc
    except OSError as exc:
        raise BundleFormatError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    except MemoryError as exc:
        raise ResourceError(f"{path}: not enough memory to read the bundle") from exc


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _open_file(path: Path) -> tuple[_Source, bytes]:
    """The archive and its manifest, both from one open file: by the next, another may have taken its place."""
    with paths.open_regular(path, follow=True) as file:
        try:
            source = Archive.scan(path, file)
        except BundleFormatError as exc:
            file.seek(0)
            if file.read(len(_LFS_START)) == _LFS_START:
                raise BundleFormatError(f"{path}: not a bundle", hint=_LFS_HINT) from exc
            raise
        if MANIFEST not in source.entries:
            raise _incomplete(path)
        file.seek(source.entries[MANIFEST].offset)
        return source, _read_manifest(path, source, file)


def _open_folder(path: Path) -> tuple[_Source, bytes]:
    source = Folder.scan(path)
    if MANIFEST not in source.sizes:
        raise _incomplete(path)
    with source.open(MANIFEST) as file:
        return source, _read_manifest(path, source, file)


def _read_manifest(path: Path, source: _Source, file: BinaryIO) -> bytes:
    """At most one byte more than a manifest may have, which is for `manifest.decode` to refuse."""
    data = file.read(min(source.sizes[MANIFEST], manifest.MAX_BYTES + 1))
    if data.startswith(_LFS_START):
        raise BundleFormatError(f"{path}: {MANIFEST} is not JSON", hint=_LFS_HINT)
    return data


def _incomplete(path: Path) -> BundleFormatError:
    return BundleFormatError(f"{path}: no manifest: incomplete bundle", hint="copy or export the bundle again")
