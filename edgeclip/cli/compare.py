"""`edgeclip compare`: two benchmarks of one device, or one against bounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeclip.cli.group import Command, examples
from edgeclip.cli.output import Output
from edgeclip.errors import GateError, UsageError

if TYPE_CHECKING:
    from edgeclip.benchmarks.comparison import Compared, Held


@click.command(
    cls=Command,
    epilog=examples(
        "edgeclip compare before.json after.json",
        "edgeclip compare before.json after.json --ceiling p90_ms=20",
        "edgeclip compare report.json --floor top1=0.60 --ceiling p90_ms=20 --ceiling size_mb=100",
    ),
)
@click.argument("reports", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--floor", "floors", multiple=True, metavar="METRIC=NUMBER", help="What every artifact must reach.")
@click.option("--ceiling", "ceilings", multiple=True, metavar="METRIC=NUMBER", help="What none may exceed.")
@click.pass_obj
def command(output: Output, reports: tuple[Path, ...], floors: tuple[str, ...], ceilings: tuple[str, ...]) -> None:
    """Compare the REPORTS that `edgeclip bench --report` wrote as JSON: the second with the first.

    Runs of other devices, inputs, threads or scenarios are refused. Between two runs, less than 5 % is no difference.
    Bounds are held against the last of REPORTS; one that is broken ends with exit code 1.
    """
    from edgeclip.benchmarks import comparison, record

    if len(reports) > 2 or (len(reports) == 1 and not floors + ceilings):
        raise UsageError("compare takes two reports, or one and bounds", hint="see `edgeclip compare --help`")
    bounds = [comparison.Bound.parse(text, is_floor=True) for text in floors]
    bounds += [comparison.Bound.parse(text, is_floor=False) for text in ceilings]
    records = [record.read(path) for path in reports]
    if len(records) == 2:
        comparison.refuse_unlike(*records)
        show(output, comparison.compare(*records))
    held = comparison.hold(records[-1], bounds)
    show_bounds(output, held)
    raise_if_broken(held)


def show(output: Output, found: Sequence[Compared]) -> None:
    """Print verdicts."""
    from edgeclip.benchmarks.report import interval, number

    output.document["comparisons"] = list(found)
    rows = [
        [
            one.label,
            one.stage,
            str(one.batch),
            number(one.before_ms.value),
            number(one.after_ms.value),
            f"{one.ratio.value:.3f}",
            interval(one.ratio, 3),
            one.verdict,
        ]
        for one in found
    ]
    columns = ("artifact", "stage", "batch", "before ms", "after ms", "time ×", "95 % CI", "verdict")
    output.table("Comparison", columns, rows)


def show_bounds(output: Output, held: Sequence[Held]) -> None:
    """Print what was held against bounds."""
    from edgeclip.benchmarks.report import interval, number

    output.document["bounds"] = list(held)
    rows = [
        [
            one.label,
            str(one.bound),
            number(one.measured.value) if one.measured else "not measured",
            interval(one.measured) if one.measured and one.measured.low < one.measured.high else "",
            output.status("ok" if one.passed else "below gate"),
        ]
        for one in held
    ]
    if rows:
        output.table("Bounds", ("artifact", "bound", "measured", "95 % CI", "status"), rows)


def raise_if_broken(held: Sequence[Held]) -> None:
    """
    Raises:
        GateError: a bound is broken, or what it is for was not measured.
    """
    broken = [one for one in held if not one.passed]
    if broken:
        first = broken[0]
        measured = f"{first.measured.value:.4g}" if first.measured else "not measured"
        raise GateError(f"{len(broken)} of {len(held)} bounds are broken; {first.label}: {first.bound}, {measured}")
