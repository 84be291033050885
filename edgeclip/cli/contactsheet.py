"""A contact sheet: one HTML file with small pictures in it, and nothing that runs or is fetched.

Names of files, and texts, are not to be trusted: the template escapes everything.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import ImageOps

from edgeclip import htmlpage
from edgeclip.cli.progress import Advance
from edgeclip.cli.tables import clean
from edgeclip.errors import InputError
from edgeclip.images import decoding, open_image, orientation_of, to_rgb

if TYPE_CHECKING:
    from edgeclip.cli.search import Ranked, Result

MAX_PICTURES = 500
MAX_BYTES = 32_000
"""Of one picture; with `MAX_PICTURES`, a sheet stays below 22 MB."""
SIDE = 320
"""Longest side of a picture, in pixels."""
QUALITIES = (80, 60, 40, 20, 5)
WHITE = (255, 255, 255)
FOLDER = Path(__file__).parent / "templates"
TEMPLATE = "contactsheet.html.j2"


@dataclass(frozen=True)
class Thumbnail:
    """A small JPEG."""

    uri: str
    """`data:…`"""
    width: int
    height: int


def draw(folder: Path, results: Sequence[Result], about: str, advance: Advance) -> str:
    """The page. A picture that cannot be read any more has its name alone."""
    small: dict[str, Thumbnail | None] = {}
    sections = []
    for one in results:
        for match in one.matches:
            if match.path not in small:
                small[match.path] = thumbnail(match.path)
            advance(1)
        asked = thumbnail(one.query) if one.kind == "image" else None
        cells = [_cell(folder, match, small[match.path]) for match in one.matches]
        sections.append({"query": clean(one.query), "asked": asked, "cells": cells})
    title = ", ".join(clean(one.query) for one in results)
    return htmlpage.render(
        FOLDER / TEMPLATE, title=title, folder=clean(str(folder)), about=clean(about), sections=sections
    )


def thumbnail(path: str) -> Thumbnail | None:
    """A picture of at most `SIDE` pixels and `MAX_BYTES` bytes, upright; None where it cannot be read."""
    try:
        with decoding(path):
            opened = open_image(path, path)
            opened.draft("RGB", (2 * SIDE, 2 * SIDE))
            upright = opened if orientation_of(opened) == 1 else ImageOps.exif_transpose(opened)
            small = to_rgb(upright, path, background=WHITE)
            small.thumbnail((SIDE, SIDE))
            for quality in QUALITIES:
                out = io.BytesIO()
                small.save(out, "JPEG", quality=quality, optimize=True)
                if out.tell() <= MAX_BYTES:
                    break
    except InputError:
        return None
    return Thumbnail(f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}", *small.size)


def _cell(folder: Path, match: Ranked, small: Thumbnail | None) -> dict[str, object]:
    path = Path(match.path)
    return {
        "rank": match.rank,
        "cosine": f"{match.cosine:.4f}",
        "name": clean(str(path.relative_to(folder))),
        "link": path.absolute().as_uri(),
        "picture": small,
    }
