"""Fixtures of the tests that run the real command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bundles import made_wrong
from tests.cli import picture


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images, one of them in a folder below, and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    for i, name in enumerate(("b.png", "a.jpg", "sub/c.webp")):
        (folder / name).parent.mkdir(exist_ok=True)
        picture(folder / name, seed=i)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="session")
def wrong_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle, whole and well-formed, with the golden embeddings of the images in another order."""
    return made_wrong(tiny_bundle, tmp_path_factory.mktemp("wrong") / "wrong.edgeclip")
