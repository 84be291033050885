"""Photographs to show a model: those that installed packages carry, or a folder's."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from edgeclip.cli import sources
from edgeclip.errors import InputError
from edgeclip.picturefiles import SUFFIXES

PACKAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
    "skimage": (
        "data",
        (
            *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png"),
            *("coins.png", "grass.png", "motorcycle_left.png", "rocket.jpg"),
        ),
    ),
}
"""Package -> folder inside it and its photographs; test patterns, drawings and scans are left out."""


@dataclass(frozen=True)
class Photographs:
    """Paths, and what each is called."""

    paths: list[str]
    names: list[str]
    others: int = 0
    """Files of the folder that are no images by their names."""


def carried() -> Photographs:
    """All that installed packages carry.

    Raises:
        InputError: there is none.
    """
    paths = [path for package in PACKAGES for path in carried_by(package)]
    if not paths:
        raise InputError(
            "no photographs: neither scikit-learn nor scikit-image, which carry some, is installed",
            hint="--photographs DIR names a folder",
        )
    return Photographs([str(path) for path in paths], [path.name for path in paths])


def carried_by(package: str) -> list[Path]:
    """Those of one package, which is located, not imported; none where it is not installed."""
    inside, names = PACKAGES[package]
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    found = [Path(folder, inside, name) for folder in folders or () for name in names]
    return [path for path in found if path.is_file()]


def in_folder(folder: Path) -> Photographs:
    """All images of a folder, recursively.

    Raises:
        InputError: it does not exist, or has no image.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    paths = sources.images([str(folder)])
    names = [Path(path).relative_to(folder).as_posix() for path in paths]
    return Photographs(paths, names, sum(1 for path in folder.rglob("*") if _is_other(path)))


def _is_other(path: Path) -> bool:
    """Whether it is a file that is no image by its name; what is hidden does not count."""
    return path.is_file() and not path.name.startswith(".") and path.suffix.lower() not in SUFFIXES
