"""Tables: aligned text in a pipe, and on a terminal as wide as it is."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from typing import TextIO

GAP = 2


def write(stream: TextIO, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table, without columns that have nothing in them.

    On a terminal that is too narrow for it, each row becomes a block of lines.
    """
    kept = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    columns = [columns[i] for i in kept]
    cells = [[clean(row[i]) for i in kept] for row in rows]
    if stream.isatty():
        _write_rich(stream, clean(title), columns, cells)
    else:
        stream.write(plain(clean(title), columns, cells))
    stream.flush()


def clean(text: str) -> str:
    """Without characters that move a terminal's cursor or colour it: names of files may hold any."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def plain(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A title, a row of headings where there are any, and aligned rows; ends with an empty line."""
    table = [list(columns), *map(list, rows)] if any(columns) else [list(row) for row in rows]
    widths = _widths(table)
    right = [numeric(column) for column in zip(*rows, strict=True)] or [False] * len(widths)
    lines = [title] if title else []
    for row in table:
        padded = (_pad(cell, width, r) for cell, width, r in zip(row, widths, right, strict=True))
        lines.append((" " * GAP).join(padded).rstrip())
    return "\n".join([*lines, "", ""])


def records(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """One block of lines a row: `heading: value`."""
    blocks = []
    for row in rows:
        named = zip(columns, row, strict=True)
        blocks.append("\n".join(f"{column}: {cell}" if column else cell for column, cell in named if cell))
    return "\n\n".join([title, *blocks] if title else blocks) + "\n\n"


def numeric(cells: Sequence[str]) -> bool:
    """Whether a column holds numbers, which are aligned to the right."""
    filled = [cell for cell in cells if cell]
    return bool(filled) and all(_is_number(cell) for cell in filled)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _write_rich(stream: TextIO, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Without a colour system rich writes no control sequence at all, not even for bold.
    plainly = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    console = Console(file=stream, color_system=None if plainly else "auto", highlight=False, emoji=False)
    needed = sum(_widths([columns, *rows])) + (GAP + 1) * len(columns)
    if needed > console.width and any(columns):
        console.print(Text(records(title, columns, rows)), end="")
        return
    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, show_header=any(columns))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if numeric([row[i] for row in rows]) else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def _widths(table: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(_width, column)) for column in zip(*table, strict=True)]


def _width(text: str) -> int:
    """Cells that a terminal needs: two for CJK and most emoji."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _pad(cell: str, width: int, right: bool) -> str:
    space = " " * (width - _width(cell))
    return space + cell if right else cell + space
