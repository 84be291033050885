"""Images and texts that a command line names: files, folders, standard input."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from edgeclip.errors import InputError, TextInputError
from edgeclip.picturefiles import SUFFIXES, walk


def images(inputs: Sequence[str], *, missing_ok: bool = False) -> list[str]:
    """Paths of images: files as they are, folders recursively in sorted order, `-` for paths from standard input.

    Args:
        missing_ok: leave files that do not exist in the list, to be reported with those that cannot be read.

    Raises:
        InputError: a path does not exist, or there is no image.
    """
    found: list[str] = []
    for name in inputs:
        paths = _from_stdin() if name == "-" else [name]
        for path in paths:
            found += _expand(path, missing_ok)
    if inputs and not found:
        raise InputError(
            f"no image found in {', '.join(inputs[:3])}",
            hint=f"in folders, names end with {', '.join(sorted(SUFFIXES))}",
        )
    return found


def lines(path: str) -> list[str]:
    """The lines of a UTF-8 file, or of standard input for `-`; an empty line is an empty text.

    Raises:
        InputError: it cannot be read.
        TextInputError: it is not UTF-8.
    """
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise TextInputError(f"{path}: not UTF-8 at byte {exc.start}") from exc
    # Not splitlines(), which also splits where a text holds a vertical tab or a Unicode line separator.
    parts = text.split("\n")
    return [part.removesuffix("\r") for part in (parts[:-1] if parts[-1] == "" else parts)]


def _from_stdin() -> list[str]:
    data = sys.stdin.buffer.read()
    separator = b"\0" if b"\0" in data else b"\n"
    return [os.fsdecode(part.rstrip(b"\r")) for part in data.split(separator) if part.strip()]


def _expand(name: str, missing_ok: bool) -> list[str]:
    path = Path(name)
    if path.is_dir():
        return list(walk(path))
    if not path.exists() and not missing_ok:
        raise InputError(f"{name}: no such file or directory")
    return [name]
