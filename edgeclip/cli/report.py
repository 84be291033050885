"""`edgeclip report`: the pages of a benchmark, drawn again from its JSON."""

from __future__ import annotations

from pathlib import Path

import click

from edgeclip.cli.group import Command, examples
from edgeclip.cli.options import need
from edgeclip.cli.output import Output
from edgeclip.errors import UsageError


@click.command(
    cls=Command,
    epilog=examples("edgeclip report run.json -o report.html", "edgeclip report run.json -o report.md"),
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-o", "--output", "path", required=True, type=click.Path(path_type=Path), help="FILE.html or FILE.md.")
@click.pass_obj
def command(output: Output, run: Path, path: Path) -> None:
    """Draw the report of RUN, a JSON file of `edgeclip bench --report`. The same file gives the same bytes."""
    need("jinja2", extra="bench", what="drawing a report")
    from edgeclip.benchmarks import publication, record
    from edgeclip.cli.writers import check_place, write_text

    if path.suffix not in publication.FORMS:
        raise UsageError(f"{path}: unknown form {path.suffix!r}", hint=f"one of: {', '.join(publication.FORMS)}")
    check_place(path)
    write_text(path, publication.FORMS[path.suffix](record.read(run)))
    output.document["report"] = str(path)
    output.note(f"-> {path}")
