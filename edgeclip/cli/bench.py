"""`edgeclip bench`: how fast the artifacts of bundles are on this device."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeclip import board, recognition
from edgeclip.bundle import Bundle, put_file
from edgeclip.cli import progress
from edgeclip.cli.export import asked_precisions, asked_targets
from edgeclip.cli.group import Command, examples
from edgeclip.cli.options import need
from edgeclip.cli.output import Output
from edgeclip.cpus import available_cpus
from edgeclip.errors import ParityError, TargetLoadError, TargetUnavailableError, UsageError
from edgeclip.publish import check_folder

if TYPE_CHECKING:
    from edgeclip.benchmarks.inputs import Pictures
    from edgeclip.benchmarks.record import Record, Scenario
    from edgeclip.benchmarks.rows import Row
    from edgeclip.profiles import Profile

SCENARIOS: tuple[Scenario, ...] = ("single-stream", "multi-stream", "offline", "cold", "sustained")
DEFAULT: tuple[Scenario, ...] = ("single-stream", "offline", "cold")
EMBEDDED = "benchmark.json"
"""The record's name in a bundle."""
EAGER = "edgeclip.train.eager:Eager"
"""What times a checkpoint in PyTorch."""


@click.command(
    cls=Command,
    epilog=examples(
        "edgeclip bench --quick",
        "edgeclip bench b32.edgeclip --report report.html",
        "edgeclip bench b32.edgeclip --target onnx,openvino --precision fp32,w8a8 --scenario single-stream",
        "edgeclip bench b32.edgeclip --profile jetson-orin-nano-25w --report report.html",
        "edgeclip bench b32.edgeclip --reference ./clip-vit-base-patch32 --accuracy accuracy.json --report report.html",
    ),
)
@click.argument("bundles", nargs=-1, type=click.Path(path_type=Path))
@click.option("--target", "targets", multiple=True, help="Names with commas; all that the bundles hold by default.")
@click.option("--precision", "precisions", multiple=True, help="Names with commas; all by default.")
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    type=click.Choice(SCENARIOS),
    help="May be given again; single-stream, offline and cold by default.",
)
@click.option("--quick", is_flag=True, help="Less than a minute for a small model; too short to compare by.")
@click.option(
    "--seconds", type=click.IntRange(min=1), help="For each artifact and stage; 60, with five trials. Less: three."
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; the profile's, or all that may be used.")
@click.option(
    "--profile",
    "device_profile",
    metavar="NAME",
    help="Of this device, as edgeclip doctor --profiles lists them, or FILE.toml, or auto: its threads and batches.",
)
@click.option("--images", type=click.Path(path_type=Path), help="A folder of pictures; generated ones by default.")
@click.option("--reference", type=click.Path(path_type=Path), help="A checkpoint to be timed in PyTorch, too.")
@click.option("--accuracy", type=click.Path(path_type=Path), help="What `edgeclip eval --json` wrote of these bundles.")
@click.option("--report", type=click.Path(path_type=Path), help="Write FILE.html, and FILE.md and FILE.json beside it.")
@click.option("--embed", is_flag=True, help=f"Put the record into the bundle, as {EMBEDDED}.")
@click.pass_obj
def command(
    output: Output,
    /,
    bundles: tuple[Path, ...],
    targets: tuple[str, ...],
    precisions: tuple[str, ...],
    scenarios: tuple[Scenario, ...],
    quick: bool,
    seconds: int | None,
    threads: int | None,
    device_profile: str | None,
    images: Path | None,
    reference: Path | None,
    accuracy: Path | None,
    report: Path | None,
    embed: bool,
) -> None:
    """Time every artifact of BUNDLES, or of the built-in model, that this device can run.

    Each runs in a process of its own, and all are called in turns, so that a slow minute falls on all alike; a second
    process of the first shows what difference means nothing. One that cannot run is a row with its reason: the others
    go on, and the exit code is 5. Scenarios: latency of single inputs, or of eight images at once (multi-stream);
    throughput by batch (offline); process start to first embedding (cold); ten minutes without pause (sustained).
    """
    need("psutil", "jinja2", extra="bench", what="measuring")
    from edgeclip.benchmarks import findings, publication, scored, suite

    if report is not None:
        publication.check(report)
    scores = scored.read(accuracy) if accuracy else ()
    profile = own_profile(device_profile) if device_profile else None
    if quick and seconds:
        raise UsageError("--quick and --seconds exclude each other")
    budget = suite.QUICK if quick else suite.STANDARD.shortened(seconds) if seconds else suite.STANDARD
    opened = open_bundles(bundles)
    if embed:
        check_embeddable(list(opened.values()))
    rows = chosen_rows(opened, targets, precisions, reference)
    with ExitStack() as stack:
        begin = stack.enter_context(progress.steps(output))
        run = suite.Suite(
            bundles=opened,
            rows=rows,
            scenarios=[one for one in SCENARIOS if one in (scenarios or DEFAULT)],
            budget=replace(budget, batches=profile.batches) if profile else budget,
            pictures=pictures(images, stack),
            threads=threads or (profile and profile.threads) or available_cpus(),
            profile=profile,
            say=begin,
        )
        run.run()
        record = findings.record_of(run, {row.label: scored.of(scores, row, opened[row.bundle]) for row in rows})
    show(output, record)
    if report is not None:
        for path in publication.write(record, report):
            output.note(f"-> {path}")
    if embed:
        embed_record(output, next(iter(opened.values())), record)
    raise_if_failed(record)


def own_profile(name: str) -> Profile:
    """The profile of this device.

    Raises:
        UsageError: there is no such profile, or it is damaged.
        TargetUnavailableError: it is another device's.
    """
    here = board.read()
    profile = recognition.choose(name, here)
    recognition.refuse_another(profile, here)
    return profile


def open_bundles(paths: Sequence[Path]) -> dict[str, Bundle]:
    """By name, which tells each from the others."""
    from edgeclip.loading import BUILT_IN

    found: dict[str, Bundle] = {}
    for path in paths or [BUILT_IN]:
        bundle, name = Bundle.open(path), path.stem
        found[name if name not in found else f"{name} {len(found) + 1}"] = bundle
    return found


def chosen_rows(
    bundles: dict[str, Bundle], targets: Sequence[str], precisions: Sequence[str], checkpoint: Path | None
) -> list[Row]:
    """All that is measured.

    Raises:
        UsageError: an unknown name, or a bundle has nothing of what was asked for.
        TargetUnavailableError: nothing that was asked for can run here.
    """
    from edgeclip.benchmarks import rows

    wanted = asked_targets(targets) if targets else []
    kinds = asked_precisions(precisions) if precisions else []
    found = [row for name, bundle in bundles.items() for row in rows.rows_of(bundle, name, wanted, kinds)]
    able = [row for row in found if not row.missing]
    if not able:
        raise TargetUnavailableError(
            f"nothing of {', '.join(dict.fromkeys(row.label for row in found))} runs here: {found[0].missing}",
            hint="`edgeclip doctor` lists what does",
        )
    if checkpoint is not None:
        need("torch", extra="export", what="timing a checkpoint")
        if not checkpoint.exists():
            raise UsageError(f"{checkpoint}: no such checkpoint")
        found.append(rows.reference(able[0], EAGER, checkpoint))
    if len(bundles) > 1:
        found = [replace(row, label=f"{row.bundle} {row.label}") for row in found]
    return found


def pictures(folder: Path | None, stack: ExitStack) -> Pictures:
    """A folder's, or generated ones that live as long as the stack."""
    from edgeclip.benchmarks import inputs

    if folder is not None:
        return inputs.chosen(folder)
    return inputs.generated(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeclip-bench-"))))


def show(output: Output, record: Record) -> None:
    """Print the tables, or the record."""
    import msgspec

    from edgeclip.benchmarks import publication, tabulated

    plain: dict[str, Any] = msgspec.json.decode(publication.to_json(record))
    output.document |= plain
    for title, columns, rows in tabulated.tables(record):
        output.table(title, columns, rows)
    for line in tabulated.remarks(record):
        output.line(line)


def check_embeddable(bundles: Sequence[Bundle]) -> None:
    """Before anything slow begins.

    Raises:
        UsageError: there are several, it is the built-in model, or its folder cannot be written to.
    """
    from edgeclip.loading import BUILT_IN

    if len(bundles) != 1:
        raise UsageError("--embed takes one bundle", hint="run it once for each")
    [bundle] = bundles
    if bundle.path.resolve() == BUILT_IN.resolve():
        raise UsageError("--embed would change the built-in model, which belongs to the package", hint="copy it first")
    check_folder(bundle.path)


def embed_record(output: Output, bundle: Bundle, record: Record) -> None:
    """Put the record into the bundle."""
    from edgeclip.benchmarks import publication

    changed = put_file(bundle, EMBEDDED, publication.to_json(record))
    output.note(f"{EMBEDDED} put into {bundle.path}; {changed.digest}")


def raise_if_failed(record: Record) -> None:
    """
    Raises:
        TargetLoadError: an artifact did not run.
        ParityError: an artifact computes something else than its bounds allow.
    """
    failed = [one for one in record.results if one.status == "failed"]
    below = [one for one in record.results if one.status == "below gate"]
    if failed:
        raise TargetLoadError(
            f"{len(failed)} of {len(record.results)} artifacts did not run; {failed[0].label}: {failed[0].reason}"
        )
    if below:
        raise ParityError(
            f"{len(below)} of {len(record.results)} artifacts are below their gate; {below[0].label}: {below[0].reason}"
        )
