"""The page: one HTML file with its style, its pictures and its tables in it, and nothing that runs or is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeclip import htmlpage
from edgeclip.benchmarks import tabulated
from edgeclip.benchmarks.charts import charts
from edgeclip.benchmarks.record import Record
from edgeclip.cli.output import MARKS
from edgeclip.cli.tables import numeric

FOLDER = Path(__file__).parent / "templates"
TEMPLATE = "report.html.j2"
NUMERIC = "number"
_TICK = "M2 6.5l3 3 5-7"
_CROSS = "M2.5 2.5l7 7m0-7l-7 7"
_DASH = "M2 6h8"
SIGNS = {
    MARKS["ok"]: ("s1", _TICK),
    MARKS["below gate"]: ("s2", _TICK),
    MARKS["failed"]: ("s5", _CROSS),
    tabulated.SKIPPED: ("weak", _DASH),
}
"""What a status begins with -> its colour, and the path that draws it on 12 x 12."""


def draw(record: Record, title: str) -> str:
    """The same record gives the same page."""
    ran = [one.label for one in record.results if one.status in ("ok", "below gate")]
    return htmlpage.render(
        FOLDER / TEMPLATE,
        title=title,
        record=record,
        names=", ".join(one.name for one in record.bundles),
        ran=len(ran),
        remarks=tabulated.remarks(record),
        failed=[one for one in record.results if one.status == "failed"],
        charts=charts(record),
        tables=[_table(*table) for table in tabulated.tables(record)],
        signs=SIGNS,
        facts=tabulated.environment(record),
    )


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, object]:
    kinds = [NUMERIC if numeric(column) else "" for column in zip(*rows, strict=True)] or [""] * len(columns)
    return {"title": title, "columns": list(zip(columns, kinds, strict=True)), "rows": rows, "kinds": kinds}
