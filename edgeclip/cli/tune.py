"""`edgeclip tune`: which artifact, engine, threads and batch are best on this device, within an accuracy budget."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeclip import __version__, backends, devicefile
from edgeclip.bundle import Bundle
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
    from edgeclip.benchmarks.contenders import Contender, Goal, Speed
    from edgeclip.benchmarks.losses import Judge
    from edgeclip.benchmarks.tuning import Tuning

BATCHES = (1, 8, 32)
COLUMNS = (
    "contender",
    "state",
    "image ms",
    "text ms",
    "images/s",
    "at batch",
    "loses",
    "bound",
    "MB",
    "load ms",
    "RAM MB",
)
MARKED = {"chosen": "ok", "kept": "ok", "dominated": "ok", "failed": "failed", "skipped": ""}
"""State -> whose mark it has; all others have that of what is below its gate."""


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
    with ExitStack() as stack:
        tuning = _tuning(opened, targets, precisions, budget, goal, quick=quick)
        tuning.threads = _numbers("--threads", threads, available_cpus()) or tuning.threads
        tuning.batches = _numbers("--batch", batches, BATCH_SIZE) or tuning.batches
        if dry_run:
            _show_plan(output, tuning, eval_data, place)
            return
        _make_room(place)
        begin = stack.enter_context(progress.steps(output))
        begin("reading data")
        tuning.pictures = pictures(images, stack)
        tuning.judge = _judge(opened, eval_data, eval_limit)
        tuning.say = begin
        tuning.run()
    file = _file(tuning, tuning.best) if tuning.best else None
    _show(output, tuning, file, place)
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
        check_place(path)
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


def _tuning(
    bundle: Bundle, targets: Sequence[str], precisions: Sequence[str], budget: float, goal: Goal, *, quick: bool
) -> Tuning:
    """What the command line asks for, without its data.

    Raises:
        UsageError: an unknown name, or nothing of the bundle can be tuned.
        TargetUnavailableError: nothing that was asked for can run here.
    """
    from edgeclip.benchmarks import contenders, losses, rows, tuning

    every = {artifact.tower for artifact in bundle.manifest.artifacts}
    if "image" not in every:
        raise UsageError(f"{bundle.path}: has no image tower, whose speed is what is tuned")
    found = chosen_rows({bundle.path.stem: bundle}, targets, precisions, None)
    whole = [row for row in found if {artifact.tower for artifact in row.artifacts} == every]
    if not whole:
        raise UsageError(
            f"{bundle.path}: no target has both towers at one precision, of which `load` could choose",
            hint="`edgeclip quantize` and `edgeclip export` make both unless told otherwise",
        )
    return tuning.Tuning(
        bundle=bundle,
        rows=whole,
        references=losses.references_of(rows.rows_of(bundle, bundle.path.stem)),
        threads=contenders.usual_threads(available_cpus()),
        batches=BATCHES,
        budget_pt=budget,
        goal=goal,
        quick=quick,
    )


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


def _show(output: Output, tuning: Tuning, file: DeviceFile | None, place: Path) -> None:
    """Print every contender, those that nothing dominates, and the choice."""
    output.document |= {
        "bundle": str(tuning.bundle.path),
        "digest": tuning.bundle.digest,
        "goal": tuning.goal,
        "budget_pt": tuning.budget_pt,
        "quick": tuning.quick,
        "margin": tuning.margin,
        "flags": tuning.flags,
        "contenders": [_plain(one) for one in tuning.contenders],
        "chosen": file,
        "path": str(place) if file else None,
    }
    output.table("Contenders", (*COLUMNS, "reason"), [_row(output, one) for one in tuning.contenders])
    front = [one for one in tuning.contenders if one.state in ("chosen", "kept")]
    if front:
        output.table("None of these is worse than another in all", COLUMNS, [_row(output, one)[:-1] for one in front])
    if tuning.flags:
        output.line(f"Flags of the run: {'; '.join(tuning.flags)}.")
    if tuning.quick:
        output.line("Quick: one short look at each.")
    if file is not None:
        label = next(one.label for one in front if one.state == "chosen")
        output.line(f"For {file.goal}: {label}, batch {file.batch}: {file.rule}.")


def _show_plan(output: Output, tuning: Tuning, eval_data: Path | None, place: Path) -> None:
    """What would be measured, and what is known of it before."""
    planned = tuning.planned(with_data=eval_data is not None)
    seconds = tuning.planned_s(planned)
    output.document |= {
        "contenders": [_plain(one) for one in planned],
        "batches": list(tuning.batches),
        "seconds": round(seconds),
        "path": str(place),
    }
    output.table("Contenders", (*COLUMNS, "reason"), [_row(output, one) for one in planned])
    output.line(f"batches {', '.join(map(str, tuning.batches))}; at least {seconds:.0f} s; the device file: {place}")


def _row(output: Output, one: Contender) -> list[str]:
    loss = one.loss
    drop = "" if loss is None or loss.drop_pt is None else f"{loss.drop_pt:.2f}"
    lost = [drop, f"{loss.bound_pt:.2f}" if loss else ""]
    return [
        one.label,
        _state(output, one.state),
        *_speeds(one),
        *lost,
        f"{one.size_bytes / 1e6:.1f}",
        *_costs(one),
        one.reason or (loss.basis if loss else ""),
    ]


def _state(output: Output, state: str) -> str:
    word = MARKED.get(state, "below gate")
    return output.status(word).replace(word, state) if word else state


def _speeds(one: Contender) -> list[str]:
    """Latencies, and images a second at the best batch."""
    from edgeclip.benchmarks.report import number

    figures = one.figures
    if figures is None:
        return [""] * 4
    best = max(figures.images_per_s, key=lambda batch: figures.images_per_s[batch].of.value)
    text = number(figures.text_ms.of.value) if figures.text_ms else ""
    return [number(figures.image_ms.of.value), text, number(figures.best_per_s), str(best)]


def _costs(one: Contender) -> list[str]:
    """Time to load, and memory."""
    return [f"{one.figures.load_ms:.0f}", f"{one.figures.peak_rss_mb:.0f}"] if one.figures else ["", ""]


def _plain(one: Contender) -> dict[str, Any]:
    figures = one.figures
    return {
        "label": one.label,
        "target": one.row.target,
        "precision": one.row.precision,
        "backend": one.row.backend,
        "threads": one.threads,
        "state": one.state,
        "reason": one.reason,
        "size_bytes": one.size_bytes,
        "loss": asdict(one.loss) if one.loss else None,
        "pass": "final" if one.is_final else "screening" if figures else None,
        "image_ms": _speed(figures.image_ms) if figures else None,
        "text_ms": _speed(figures.text_ms) if figures and figures.text_ms else None,
        "images_per_s": {str(n): _speed(speed) for n, speed in figures.images_per_s.items()} if figures else {},
        "load_ms": figures.load_ms if figures else None,
        "peak_rss_mb": figures.peak_rss_mb if figures else None,
    }


def _speed(speed: Speed) -> dict[str, Any]:
    return asdict(speed.of) | {"controlled": speed.controlled}


def _raise_if_failed(tuning: Tuning, place: Path) -> None:
    """
    Raises:
        GateError: nothing is within the budget.
        TargetLoadError: a contender did not run.
    """
    failed = [one for one in tuning.contenders if one.state == "failed"]
    if failed and tuning.best is None and len(failed) == len(tuning.contenders):
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
