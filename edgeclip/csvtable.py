"""Tables in CSV and TSV files, whose columns are found by the names that they may have."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeclip.errors import DataError, UsageError


@dataclass(frozen=True)
class Table:
    """A CSV or TSV with a row of headings."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]

    def has(self, known: Sequence[str]) -> bool:
        """Whether there is a column with one of the names, in whatever case."""
        return self._find(known) is not None

    def column(self, known: Sequence[str]) -> str:
        """The column with one of the names, the first that is there.

        Raises:
            UsageError: there is none.
        """
        found = self._find(known)
        if found is None:
            has = f"it has: {', '.join(self.columns) or 'nothing'}"
            raise UsageError(f"{self.path}: no column {' or '.join(known)}", hint=has)
        return found

    def _find(self, known: Sequence[str]) -> str | None:
        by_name = {name.strip().lower(): name for name in self.columns if name}
        return next((by_name[name] for name in known if name in by_name), None)


def read_table(path: Path) -> Table:
    """
    Raises:
        DataError: it cannot be read, or is no table.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            rows = tuple(reader)
            return Table(path, tuple(reader.fieldnames or ()), rows)
    except OSError as exc:
        raise DataError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise DataError(f"{path}: not UTF-8 at byte {exc.start}") from exc
    except csv.Error as exc:
        raise DataError(f"{path}: not a table: {exc}") from exc
