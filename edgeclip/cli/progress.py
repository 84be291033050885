"""Progress of long work, on standard error; nothing where that is no terminal, or with `--quiet`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from edgeclip.cli.output import Output

Advance = Callable[[int], None]
Step = Callable[[str], None]


@contextmanager
def bar(output: Output, label: str, total: int, *, unit: str = "") -> Iterator[Advance]:
    """A bar that the yielded function advances. `unit="bytes"` shows sizes and speed."""
    if not _shown(output):
        yield lambda amount: None
        return
    with _progress(unit) as progress:
        task = progress.add_task(label, total=total)
        yield lambda amount: progress.advance(task, amount)


@contextmanager
def steps(output: Output, total: int | None = None) -> Iterator[Step]:
    """A line that names the step that runs, and for how long; the yielded function begins the next."""
    if not _shown(output):
        yield lambda name: None
        return
    with _progress("steps" if total else "") as progress:
        task = progress.add_task("starting", total=total)
        started = False

        def begin(name: str) -> None:
            nonlocal started
            progress.update(task, description=name, advance=1 if started else 0)
            started = True

        yield begin


def _shown(output: Output) -> bool:
    return not output.quiet and sys.stderr is not None and sys.stderr.isatty()


def _progress(unit: str) -> Any:
    from rich import progress as rich
    from rich.console import Console

    columns: list[rich.ProgressColumn] = [rich.SpinnerColumn(), rich.TextColumn("{task.description}", markup=False)]
    if unit == "bytes":
        columns += [rich.BarColumn(), rich.DownloadColumn(), rich.TransferSpeedColumn()]
    else:
        columns += [rich.BarColumn(), rich.MofNCompleteColumn()]
    columns += [rich.TimeElapsedColumn()]
    # Redirection would put results, which are none of its business, through standard error.
    return rich.Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
    )
