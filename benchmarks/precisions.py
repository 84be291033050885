"""What each target costs and keeps at each precision: `python -m edgeclip.benchmarks.precisions --data DIR`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from edgeclip.benchmarks import environment, fidelity, pace, precision_report, subjects, timing
from edgeclip.benchmarks.fidelity import Fidelity, Trial
from edgeclip.benchmarks.pace import Clock
from edgeclip.benchmarks.precision_report import TIMES, Described, Report, Row
from edgeclip.benchmarks.quiet import Disturbances, Progress
from edgeclip.benchmarks.results import Group, find
from edgeclip.benchmarks.subjects import MAKERS, Subject, Workshop
from edgeclip.benchmarks.variants import Variant, variants_of
from edgeclip.bundle import Bundle
from edgeclip.cpus import available_cpus
from edgeclip.errors import EdgeClipError, UsageError
from edgeclip.tokenizer import Tokenizer

CAPTIONED = "eval/wds_flickr8k"
"""A folder in the data, for what was not trained."""
PATIENCE_S = 60.0
DOCS = Path("docs/quantization.md")


@dataclass(frozen=True)
class Budget:
    """How much is measured."""

    seconds: float
    queries: int
    pictures: int
    """Of the labelled test set; 0: all."""
    unlabelled: int
    """Pictures for a model that was not trained."""


STANDARD = Budget(seconds=4.0, queries=16, pictures=0, unlabelled=128)
QUICK = Budget(seconds=0.5, queries=4, pictures=200, unlabelled=32)


def measure(subject: Subject, data: Path, budget: Budget, clock: Clock, found: Report) -> None:
    """Everything of one model."""
    bundle = Bundle.open(subject.bundle)
    variants = variants_of(bundle)
    trial = _trial(subject, bundle, data, budget)
    clock.say(f"{subject.name}: {len(trial.pixels)} pictures of {trial.data}")
    kept = fidelity.measure(trial, variants, clock.threads)
    timed = pace.measure(clock, subject, [one for one in variants if one.is_timed], trial.pixels)
    found.models.append(Described(subject.key, subject.name, bundle.digest, trial.data, len(trial.pixels)))
    found.rows += [_row(subject, one, kept[one.label], timed.groups) for one in variants]
    found.groups += timed.groups
    found.rates = found.rates or timed.rates
    found.canary_ms.append(timing.canary() * 1e3)


def _trial(subject: Subject, bundle: Bundle, data: Path, budget: Budget) -> Trial:
    spec = bundle.manifest.tokenizer
    assert spec is not None
    tokenizer = Tokenizer(bundle.read(spec.file), spec)
    if subject.trained:
        return fidelity.labelled(
            data / subjects.EVALUATED_ON, bundle.manifest.preprocess, tokenizer, limit=budget.pictures
        )
    return fidelity.captioned(data / CAPTIONED, bundle.manifest.preprocess, tokenizer, limit=budget.unlabelled)


def _row(subject: Subject, variant: Variant, kept: Fidelity, groups: Sequence[Group]) -> Row:
    times: dict[str, float | None] = {}
    for key in TIMES:
        group = find(groups, f"{subject.key}/{key}")
        row = group.row(variant.label) if group else None
        times[key] = row.p50.value if row and row.p50 else None
    return Row(subject.key, variant.target, variant.precision, variant.size_bytes, variant.kept, kept, times)


@click.command()
@click.option(
    "--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True, help="train/, eval/."
)
@click.option(
    "--tokenizer", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True, help="OpenAI's merges."
)
@click.option("--only", multiple=True, type=click.Choice(list(MAKERS)), help="Only these models.")
@click.option("--quick", is_flag=True, help="Few pictures and calls; not comparable, and not written to docs/.")
@click.option("--keep", is_flag=True, help="Measure bundles that are there, although other code made them.")
@click.option("--threads", type=click.IntRange(min=1), help="Of the engines; those that this process may use.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/precisions"), show_default=True)
@click.option("--report", "folder", type=click.Path(path_type=Path), help="Of the reports.")
@click.option("--others", type=click.Path(path_type=Path), help="An earlier precisions.json, for the models left out.")
@click.option("--make-only", is_flag=True, help="Make the bundles, and measure nothing.")
def main(
    data: Path,
    tokenizer: Path,
    only: tuple[str, ...],
    quick: bool,
    keep: bool,
    threads: int | None,
    work: Path,
    folder: Path | None,
    others: Path | None,
    make_only: bool,
) -> None:
    """Measure size, speed and accuracy of every target at every precision, of three models.

    The bundles are made first, which takes about half an hour, and kept; to measure takes ten minutes. A whole run
    with --report writes the tables into docs/quantization.md, too.
    """
    say = Progress()
    workshop = Workshop(work, data, tokenizer, say, keep=keep)
    budget = QUICK if quick else STANDARD
    clock = Clock(budget.seconds, budget.queries, threads or available_cpus(), 2.0 if quick else PATIENCE_S, say)
    try:
        _check(data)
        earlier = precision_report.read(others) if others else None
        made = [MAKERS[key](workshop) for key in only or MAKERS]
        if make_only:
            return
        found = _run(
            made, data, budget, clock, {"mode": "quick: not comparable" if quick else "standard", "kept": keep}
        )
        if earlier is not None:
            found = precision_report.joined(found, earlier)
        whole = not quick and len(found.models) == len(MAKERS)
        _publish(found, folder or work / "reports", docs=whole and folder is not None, say=say)
    except EdgeClipError as exc:
        raise click.ClickException(str(exc)) from exc


def _check(data: Path) -> None:
    """Before half an hour of making bundles."""
    for name in (subjects.CALIBRATED_ON, subjects.EVALUATED_ON, CAPTIONED):
        if not (data / name).is_dir():
            raise UsageError(
                f"{data / name}: no such folder", hint="--data names the folder that holds train/ and eval/"
            )


def _run(made: Sequence[Subject], data: Path, budget: Budget, clock: Clock, mode: dict[str, Any]) -> Report:
    disturbances = Disturbances(clock.threads)
    config = {
        **mode,
        "threads": clock.threads,
        "budget_s": budget.seconds,
        "min_queries": budget.queries,
        "seed": timing.SEED,
    }
    found = Report(environment.describe(clock.threads), config, canary_ms=[timing.canary() * 1e3])
    for subject in made:
        measure(subject, data, budget, clock, found)
    busy = any("busy" in flag for group in found.groups for flag in group.flags)
    found.flags += disturbances.flags(found.canary_ms, busy=busy)
    found.goals = precision_report.goals(found.rows, found.groups, found.rates)
    return found


def _publish(found: Report, folder: Path, *, docs: bool, say: Progress) -> None:
    if docs:
        page = precision_report.insert(DOCS.read_text("utf-8"), precision_report.block(found))
        DOCS.write_text(page, "utf-8")
        say(f"written: {DOCS}")
    for path in precision_report.write(found, folder):
        say(f"written: {path}")


if __name__ == "__main__":
    main()
