"""`edgeclip tune`: which artifact, engine, threads and batch are best on this device, within an accuracy budget."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeclip import __version__, backends, devicefile
from edgeclip.bundle import Bundle
from edgeclip.cli import contenders as table
from edgeclip.cli import progress
from edgeclip.cli.bench import chosen_rows, pictures
from edgeclip.cli.group import Command, examples
from edgeclip.cli.options import need
from edgeclip.cli.output import Output
from edgeclip.cli.writers import check_place, write_text
from edgeclip.cpus import available_cpus
from edgeclip.devicefile import DeviceFile
from edgeclip.errors import GateError, TargetLoadError, UsageError
from edgeclip.model import BATCH_SIZE

if TYPE_CHECKING:
    from edgeclip.benchmarks.choice import Choice
    from edgeclip.benchmarks.contenders import Goal
    from edgeclip.benchmarks.losses import Judge
    from edgeclip.benchmarks.rows import Row
    from edgeclip.benchmarks.tuning import Tuning

BATCHES = (1, 8, 32)
LACKS = "lacks a tower that the bundle has: load() would not take it"


@click.command(
    cls=Command,
    epilog=examples(
        "edgeclip tune b32.edgeclip",
        "edgeclip tune b32.edgeclip --eval imagenet_val/ --budget 0.5",
        "edgeclip tune b32.edgeclip --for throughput --threads 4 --batch 8,32",
        "edgeclip tune b32.edgeclip --dry-run",
        "edgeclip tune b32.edgeclip --forget",
    ),
)
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option(
    "--budget",
    type=click.FloatRange(0, 100),
    default=0.5,
    show_default=True,
    help="Percentage points that may be lost of the bundle's fp32.",
)
@click.option(
    "--eval",
    "eval_data",
    type=click.Path(path_type=Path),
    help="Measure the loss here: a test set, class folders or a CSV of captions; what the bundle says, by default.",
)
@click.option("--eval-limit", type=click.IntRange(min=0), default=0, help="Pictures of it; 0: all.")
@click.option(
    "--for",
    "goal",
    type=click.Choice(["latency", "throughput", "size"]),
    default="latency",
    show_default=True,
    help="What is to be best.",
)
@click.option("--target", "targets", multiple=True, help="Names with commas; all that the bundle holds by default.")
@click.option("--precision", "precisions", multiple=True, help="Names with commas; all by default.")
@click.option("--threads", help="Numbers with commas; 1, half of the CPUs and all by default.")
@click.option("--batch", "batches", help=f"Numbers with commas, at most {BATCH_SIZE}; 1, 8 and 32 by default.")
@click.option("--images", type=click.Path(path_type=Path), help="A folder of pictures; generated ones by default.")
@click.option("--quick", is_flag=True, help="A short look alone: less than a minute for a small model.")
@click.option("--dry-run", is_flag=True, help="Show what would be measured; measure and write nothing.")
@click.option("--forget", is_flag=True, help="Remove the device file, be it damaged; measure nothing.")
@click.option("-o", "--output", "path", type=click.Path(path_type=Path), help="Write the device file elsewhere.")
@click.pass_obj
def command(
    output: Output,
    /,
    bundle: Path | None,
    budget: float,
    eval_data: Path | None,
    eval_limit: int,
    goal: Goal,
    targets: tuple[str, ...],
    precisions: tuple[str, ...],
    threads: str | None,
    batches: str | None,
    images: Path | None,
    quick: bool,
    dry_run: bool,
    forget: bool,
    path: Path | None,
) -> None:
    """Find what of BUNDLE, or of the built-in model, is best on this device, and keep it for edgeclip.load().

    Each artifact on each engine that runs it, with each number of threads, is timed in a process of its own, all in
    turns. What may lose more than the budget is not timed. The best goes into the device file, by which load() chooses
    where nothing else is named. Exit code 1: nothing is within the budget, and no file is written.
    """
    from edgeclip.loading import BUILT_IN

    opened = Bundle.open(bundle or BUILT_IN)
    place = _place(opened, path)
    if forget:
        _forget(output, place)
        return
    need("psutil", "jinja2", extra="bench", what="measuring")
    from edgeclip.benchmarks.contenders import usual_threads
    from edgeclip.benchmarks.losses import references_of
    from edgeclip.benchmarks.rows import rows_of
    from edgeclip.benchmarks.tuning import Tuning

    with ExitStack() as stack:
        rows = _rows(opened, chosen_rows({opened.path.stem: opened}, targets, precisions, None))
        tuning = Tuning(
            bundle=opened,
            rows=rows,
            references=references_of(rows_of(opened, opened.path.stem)),
            threads=_numbers("--threads", threads, available_cpus()) or usual_threads(available_cpus()),
            batches=_numbers("--batch", batches, BATCH_SIZE) or BATCHES,
            budget_pt=budget,
            goal=goal,
            quick=quick,
        )
        if dry_run:
            table.show_plan(output, tuning, place, with_data=eval_data is not None)
            return
        _make_room(place)
        tuning.say = stack.enter_context(progress.steps(output))
        tuning.say("reading data")
        tuning.pictures = pictures(images, stack)
        tuning.judge = _judge(opened, eval_data, eval_limit)
        tuning.run()
    file = _file(tuning, tuning.best) if tuning.best else None
    table.show(output, tuning, file, place)
    if file is not None:
        write_text(place, devicefile.encode(file).decode())
        output.line(f"-> {place}")
    _raise_if_failed(tuning, place)


def _place(bundle: Bundle, path: Path | None) -> Path:
    """Where the device file goes.

    Raises:
        UsageError: device files are turned off, or there is no place for one.
    """
    if path is not None:
        check_place(path, ".json")
        return path
    place = devicefile.path_of(bundle.digest)
    if place is None:
        raise UsageError(
            f"there is no folder for device files: {devicefile.VARIABLE}={devicefile.OFF}, or no home directory",
            hint=f"-o FILE, or set {devicefile.VARIABLE} to a folder",
        )
    return place


def _make_room(place: Path) -> None:
    """Before anything slow begins.

    Raises:
        UsageError: the folder cannot be made.
    """
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise UsageError(f"{place.parent}: cannot be made: {exc.strerror}", hint="-o FILE writes elsewhere") from exc


def _forget(output: Output, place: Path) -> None:
    was_there = devicefile.forget(place)
    output.document |= {"path": str(place), "forgotten": was_there}
    output.line(f"{place}: removed" if was_there else f"{place}: there is none")


def _rows(bundle: Bundle, found: Sequence[Row]) -> list[Row]:
    """All of them; what `load` would not take, because it lacks a tower that the bundle has, cannot be chosen.

    Raises:
        UsageError: that leaves nothing.
    """
    every = {artifact.tower for artifact in bundle.manifest.artifacts}
    if "image" not in every:
        raise UsageError(f"{bundle.path}: has no image tower, whose speed is what is tuned")
    lacking = [row for row in found if {artifact.tower for artifact in row.artifacts} != every]
    if len(lacking) == len(found):
        raise UsageError(
            f"{bundle.path}: {found[0].label} has one tower alone, which load() would not choose",
            hint="leave out --tower when you export or quantize",
        )
    return [replace(row, missing=row.missing or LACKS, wanted=False) if row in lacking else row for row in found]


def _judge(bundle: Bundle, path: Path | None, limit: int) -> Judge | None:
    """Data to measure losses on. Raises as `open_evaluation`."""
    if path is None:
        return None
    from edgeclip.quantize.bundled import tokenizer_of
    from edgeclip.quantize.evaluation import open_evaluation

    return open_evaluation(path, bundle.manifest.preprocess, tokenizer_of(bundle), limit=limit)


def _numbers(option: str, text: str | None, most: int) -> list[int]:
    """Numbers with commas, ascending, each once.

    Raises:
        UsageError: one is no number from 1 to `most`.
    """
    parts = [part.strip() for part in text.split(",")] if text else []
    wrong = [part for part in parts if not part.isascii() or not part.isdigit() or not 1 <= int(part) <= most]
    if wrong:
        raise UsageError(f"{option}: {wrong[0]!r} is no number from 1 to {most}")
    return sorted({int(part) for part in parts})


def _file(tuning: Tuning, best: Choice) -> DeviceFile:
    one, row = best.contender, best.contender.row
    assert one.loss is not None and one.figures is not None
    figures = one.figures
    return DeviceFile(
        format_version=devicefile.FORMAT_VERSION,
        edgeclip=__version__,
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        bundle=tuning.bundle.digest,
        machine=devicefile.machine(row.backend),
        backend=row.backend,
        target=row.artifacts[0].target,
        precision=row.precision,
        device=backends.entry(row.backend).device,
        compute="f32",
        threads=one.threads,
        batch=best.batch,
        goal=tuning.goal,
        rule=best.rule,
        loss=devicefile.Loss(
            basis=one.loss.basis,
            drop_pt=one.loss.drop_pt,
            bound_pt=one.loss.bound_pt,
            budget_pt=tuning.budget_pt,
        ),
        measured=devicefile.Measured(
            image_ms=figures.image_ms.of.value,
            text_ms=figures.text_ms.of.value if figures.text_ms else None,
            images_per_s=figures.images_per_s[best.batch].of.value,
            load_ms=figures.load_ms,
            peak_rss_mb=figures.peak_rss_mb,
            size_bytes=row.size_bytes,
        ),
    )


def _raise_if_failed(tuning: Tuning, place: Path) -> None:
    """
    Raises:
        GateError: nothing is within the budget.
        TargetLoadError: a contender did not run.
    """
    failed = [one for one in tuning.contenders if one.state == "failed"]
    if failed and {one.state for one in tuning.contenders} <= {"failed", "skipped"}:
        raise TargetLoadError(f"none of {len(failed)} runs; {failed[0].label}: {failed[0].reason}")
    if tuning.best is None:
        kept = "the one that is there stays" if place.exists() else "no device file was written"
        raise GateError(
            f"nothing is known to lose at most {tuning.budget_pt:g} points: {_nearest(tuning)}",
            hint=f"a larger --budget, or more pictures with --eval; {kept}",
        )
    if failed:
        raise TargetLoadError(
            f"{len(failed)} of {len(tuning.contenders)} contenders did not run; {failed[0].label}: {failed[0].reason}"
        )


def _nearest(tuning: Tuning) -> str:
    """What comes nearest to the budget, in words."""
    over = [one for one in tuning.contenders if one.state == "over budget"]
    if over:
        best = min(over, key=lambda one: one.loss.bound_pt if one.loss else float("inf"))
        return f"{best.label} {best.reason}"
    one = tuning.contenders[0]
    return f"{one.label}: {one.reason or one.state}"
