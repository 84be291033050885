"""A Core ML package: the files behind an `.mlpackage`, and which of them are the model and its weights.

`Manifest.json` says which, by paths that Core ML's own tools follow wherever they lead, out of the package too. Here
every path is held against the files that the artifact really has; nothing is looked up on a disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeclip import manifest, paths
from edgeclip.buffers import Buffer
from edgeclip.errors import BundleFormatError, BundlePathError, TargetLoadError
from edgeclip.manifest import Artifact

if TYPE_CHECKING:
    from edgeclip.backends.mil_program import Program

LISTING = "Manifest.json"
_NAME = re.compile(r"((?:.*/)?[^/]*\.mlpackage)/")
_MODEL_PATH = "@model_path/"


@dataclass(frozen=True)
class Package:
    """A package whose manifest was checked."""

    name: str
    """Its path within the bundle, `coreml-fp16/image.mlpackage`."""
    model: str
    """Of the specification, `Data/com.apple.CoreML/model.mlmodel`."""
    files: Mapping[str, Buffer]
    """All of them, by their paths within the package."""

    @property
    def specification(self) -> Buffer:
        return self.files[self.model]

    @property
    def weights(self) -> dict[str, Buffer]:
        """Files beside the specification, by the names that programs have for them: `@model_path/weights/…`."""
        folder = self.model.rpartition("/")[0] + "/"
        return {
            _MODEL_PATH + name.removeprefix(folder): data
            for name, data in self.files.items()
            if name.startswith(folder) and name != self.model
        }


def read(file: str, files: Mapping[str, Buffer]) -> Package:
    """The package that a file of an artifact lies in.

    Args:
        file: any path in it, such as that of its `Manifest.json`.
        files: of the artifact, by their paths within the bundle.

    Raises:
        BundlePathError: the manifest names a path that leaves the package or is not in it.
        BundleFormatError: there is no manifest, it is malformed, or it does not account for all of the files.
    """
    match = _NAME.match(file)
    package = match[1] if match else ""
    listing = f"{package}/{LISTING}"
    if listing not in files:
        raise BundleFormatError(f"{package}: the package has no {LISTING}")
    document = manifest.parse_json(bytes(files[listing]), listing)
    inside = {name.removeprefix(f"{package}/"): files[name] for name in files if name.startswith(f"{package}/")}
    items = _items(document, listing)
    for path in items.values():
        _check_path(path, inside, listing)
    listed = {LISTING}.union(*(_members(path, inside) for path in items.values()))
    if strangers := sorted(set(inside) - listed):
        raise BundleFormatError(f"{listing}: says nothing of {strangers[0]!r}, which lies in the package")
    root = document.get("rootModelIdentifier")
    model = f"Data/{items.get(root, '')}" if isinstance(root, str) else ""
    if model not in inside or not model.endswith(".mlmodel"):
        raise BundleFormatError(f"{listing}: its root model is not a .mlmodel of the package")
    return Package(package, model, inside)


@contextmanager
def naming(artifact: Artifact) -> Iterator[None]:
    """What is wrong with a program or its weights is said of the package that they are in."""
    try:
        yield
    except TargetLoadError as exc:
        raise TargetLoadError(f"{artifact.file.rpartition('/')[0]}: {exc.message}", hint=exc.hint) from exc


def require_own_weights(package: Package, program: Program) -> None:
    """A program names the files of its weights: Core ML opens what it names.

    Raises:
        BundlePathError: one of them is not in the package.
    """
    for name in sorted(program.weight_files - set(package.weights)):
        raise BundlePathError(f"{package.name}/{package.model}: weights in {name[:80]!r}, not in the package")


def _items(document: Any, listing: str) -> dict[str, str]:
    """Each item's path below `Data`, by its identifier."""
    items = document.get("itemInfoEntries") if isinstance(document, dict) else None
    if not isinstance(items, dict) or not items:
        raise BundleFormatError(f"{listing}: lists no items")
    found = {}
    for identifier, item in items.items():
        path = item.get("path") if isinstance(item, dict) else None
        if not isinstance(path, str):
            raise BundleFormatError(f"{listing}: an item without a path")
        found[identifier] = path
    return found


def _check_path(path: str, inside: Mapping[str, Buffer], listing: str) -> None:
    try:
        paths.check(path)
    except BundlePathError as exc:
        raise BundlePathError(f"{listing}: {exc.message}") from exc
    if not _members(path, inside):
        raise BundlePathError(f"{listing}: path {path!r} is not in the package")


def _members(path: str, inside: Mapping[str, Buffer]) -> set[str]:
    """The file that an item's path is, or those in the folder that it is."""
    whole = f"Data/{path}"
    return {name for name in inside if name == whole or name.startswith(f"{whole}/")}
