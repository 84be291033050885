"""Core ML packages in their compiled form, which is a folder: made once, then kept in the user's cache.

The folder stays where it is, because macOS remembers by its path what it prepared for the Neural Engine. A small file
beside it says which files it has and their digests: whatever is not so is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgeclip import cache, paths
from edgeclip.backends.coreml_package import Package
from edgeclip.errors import BundlePathError

SUFFIX = ".mlmodelc"
STALE_S = 24 * 3600.0
"""After which a folder that nothing speaks of is one that somebody left behind."""
_PLACE = "coreml"

Compiler = Callable[[Path, Path], None]
"""From the path of a package to the path that its compiled form shall have."""


@dataclass
class Compiled:
    """A compiled package on disk."""

    path: Path
    temporary: tempfile.TemporaryDirectory[str] | None = None
    """What holds it, where there is no cache to keep it in."""

    def close(self) -> None:
        """Remove it, unless it is kept."""
        if self.temporary is not None:
            self.temporary.cleanup()


def compiled(package: Package, facts: tuple[str, ...], compiler: Compiler) -> Compiled:
    """The compiled form of a package, from the cache or made now.

    Args:
        facts: all that its form depends on besides the package: versions of the library and the system.
    """
    root = cache.directory()
    if root is None:
        temporary = tempfile.TemporaryDirectory(prefix="edgeclip-")
        return Compiled(_compile(package, Path(temporary.name), compiler), temporary)
    name = cache.fingerprint(*facts, *_digests(package))
    place = root / _PLACE
    kept = _kept(place, name)
    if kept is not None:
        return Compiled(kept)
    place.mkdir(mode=0o700, exist_ok=True)
    _sweep(place)
    folder = Path(tempfile.mkdtemp(dir=place, prefix=f"{name}-"))
    try:
        path = _compile(package, folder, compiler)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    listing = {"folder": folder.name, "files": _contents(path)}
    cache.write(f"{_PLACE}/{name}.json", json.dumps(listing).encode())
    return Compiled(path)


def store(package: Package, folder: Path) -> Path:
    """Write a package whose paths were checked into a folder of our own, for tools that read only files."""
    target = folder / Path(package.name).name
    for name, data in package.files.items():
        paths.check(name)
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return target


def _compile(package: Package, folder: Path, compiler: Compiler) -> Path:
    target = folder / f"{Path(package.name).stem}{SUFFIX}"
    with tempfile.TemporaryDirectory(prefix="edgeclip-") as scratch:
        compiler(store(package, Path(scratch)), target)
    return target


def _digests(package: Package) -> list[str]:
    return [f"{name} {cache.content_digest(data)}" for name, data in sorted(package.files.items())]


def _kept(place: Path, name: str) -> Path | None:
    """The folder that was made before, if it is as it was then."""
    data = cache.read(f"{_PLACE}/{name}.json")
    if data is None:
        return None
    listing = json.loads(data)
    found = list((place / listing["folder"]).glob(f"*{SUFFIX}"))
    try:
        intact = len(found) == 1 and _contents(found[0]) == listing["files"]
    except (OSError, BundlePathError):
        intact = False
    return found[0] if intact else None


def _contents(path: Path) -> dict[str, str]:
    """The sha256 of every file, by its path within the folder.

    Raises:
        BundlePathError: something in it is a link or another special file.
    """
    found = {}
    for folder, _, names in os.walk(path):
        for name in names:
            file = Path(folder) / name
            with paths.open_regular(file) as opened:
                found[file.relative_to(path).as_posix()] = hashlib.sha256(opened.read()).hexdigest()
    return found


def _sweep(place: Path) -> None:
    """Remove folders that no listing names: left by processes that were killed, or that another was faster than."""
    listings = [cache.read(f"{_PLACE}/{path.name}") for path in place.glob("*.json")]
    named = {json.loads(data)["folder"] for data in listings if data is not None}
    for folder in place.iterdir():
        if folder.is_dir() and folder.name not in named and time.time() - folder.stat().st_mtime > STALE_S:
            shutil.rmtree(folder, ignore_errors=True)
