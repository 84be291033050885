"""A record as files: JSON, which is the truth, and a page in HTML and one in Markdown that are drawn from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgeclip.benchmarks import record, tabulated
from edgeclip.benchmarks.record import Record
from edgeclip.benchmarks.report import table
from edgeclip.cli.writers import check_place, write_text
from edgeclip.errors import UsageError

TITLE = "edgeclip benchmark"


def check(path: Path) -> None:
    """Before anything slow begins.

    Raises:
        UsageError: it is no name of a page, or there is no place for it.
    """
    if path.suffix != ".html":
        raise UsageError(f"{path}: a report is a .html file", hint="its .json and .md are written beside it")
    check_place(path)


def write(found: Record, path: Path) -> list[Path]:
    """Write `path`, and the same name with `.json` and `.md`.

    Raises:
        ResourceError, UsageError: it cannot be written.
    """
    again = record.decode(to_json(found))  # What is drawn is what the file has, to its last digit.
    paths = [path.with_suffix(".json"), *(path.with_suffix(suffix) for suffix in FORMS)]
    write_text(paths[0], to_json(found).decode())
    for each in paths[1:]:
        write_text(each, FORMS[each.suffix](again))
    return paths


def to_json(found: Record) -> bytes:
    """The record itself."""
    return record.encode(found)


def to_markdown(found: Record) -> str:
    """Tables, and what a reader must know before them."""
    remarks = [f"**{line}**" for line in tabulated.remarks(found)]
    facts = [[name, value] for name, value in tabulated.environment(found)]
    parts = [f"# {TITLE}", *remarks, *map(table, tabulated.tables(found)), table(("Measured on", ("", ""), facts))]
    return "\n\n".join(parts) + "\n"


def to_html(found: Record) -> str:
    """One page that needs nothing else."""
    from edgeclip.benchmarks.page import draw

    return draw(found, TITLE)


FORMS: dict[str, Callable[[Record], str]] = {".html": to_html, ".md": to_markdown}
