"""A Core ML package: a folder of three files.

{tower}.mlpackage/Manifest.json                           names the other two
{tower}.mlpackage/Data/com.apple.CoreML/model.mlmodel     the program, a protobuf
{tower}.mlpackage/Data/com.apple.CoreML/weights/weight.bin
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path

from edgeclip.manifest import Tower

LISTING = "Manifest.json"
MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
_AUTHOR = "com.apple.CoreML"
_ITEMS = (
    ("model.mlmodel", "CoreML Model Specification", "com.apple.CoreML/model.mlmodel"),
    ("weights", "CoreML Model Weights", "com.apple.CoreML/weights"),
)


def pack(tower: Tower, model: bytes, weights: bytes) -> dict[str, bytes]:
    """The package's files, by their names beside other packages. The same contents give the same bytes."""
    contents = {LISTING: _listing(), MODEL: model, WEIGHTS: weights}
    return {f"{tower}.mlpackage/{name}": data for name, data in contents.items()}


def write(files: Mapping[str, bytes], folder: Path) -> None:
    """Put the files of packages into a folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _listing() -> bytes:
    """Identifiers need to differ within the package alone; coremltools draws new ones each time."""
    identifiers = [str(uuid.uuid5(uuid.NAMESPACE_URL, f"edgeclip/{path}")) for _, _, path in _ITEMS]
    entries = {
        identifier: {"author": _AUTHOR, "description": description, "name": name, "path": path}
        for identifier, (name, description, path) in zip(identifiers, _ITEMS, strict=True)
    }
    document = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": identifiers[0]}
    return json.dumps(document, indent=4, sort_keys=True).encode() + b"\n"
