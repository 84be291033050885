"""Does the benchmark find what is there, and nothing else? `python -m edgeclip.benchmarks.selftest`.

Each run times four processes of the built-in model as `edgeclip bench` does, three times with fresh ones: one, its
control, an equal one, and one whose every call is made a tenth slower. The equal one must not be told from the first,
and the slowed one must be found slower, each in 95 of 100 runs at least.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click

from edgeclip.benchmarks import environment, inputs, timing, worker
from edgeclip.benchmarks.quiet import Progress
from edgeclip.benchmarks.record import Comparison
from edgeclip.benchmarks.rows import Row, rows_of
from edgeclip.benchmarks.summary import Cells
from edgeclip.benchmarks.timing import Estimate
from edgeclip.benchmarks.trial import CONTROL, Cell, Pace, Trial
from edgeclip.benchmarks.verdict import margin_of
from edgeclip.bundle import Bundle
from edgeclip.errors import GateError
from edgeclip.loading import BUILT_IN
from edgeclip.scores import score

FIRST, EQUAL, SLOWED = "first", "equal", "slowed"
SLOWDOWN = 0.10
LEAST = 0.95
CELL: Cell = ("image_encode", 1)
TRIALS = 3
PACE = Pace(seconds=1.0, turns=8, warmup_s=0.2, window_s=0.1, most_warmup_s=1.0, extensions=0, margin=margin_of(TRIALS))
THREADS = 1
"""Of each engine: two threads on two CPUs would measure the other processes of the machine."""
WORKER = "worker"
COMMANDS = {label: ("-m", "edgeclip.benchmarks.selftest", WORKER, label) for label in (FIRST, EQUAL, SLOWED, CONTROL)}
"""The same program for all."""


@dataclass(frozen=True)
class Run:
    """What was said of one run."""

    equal: Comparison
    slowed: Comparison
    control: Estimate

    def __str__(self) -> str:
        said = [(f"{one.b} {one.verdict}", one.ratio) for one in (self.equal, self.slowed)]
        return ", ".join(
            f"{what} {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
            for what, ratio in [*said, ("control", self.control)]
        )


@click.command()
@click.option("--runs", default=50, show_default=True, type=click.IntRange(min=1))
def main(runs: int) -> None:
    """Measure how often the benchmark is right."""
    say = Progress()
    pin()
    with tempfile.TemporaryDirectory(prefix="edgeclip-selftest-") as folder:
        pictures = inputs.generated(Path(folder)).paths
        found, others = [], environment.Others()
        for number in range(runs):
            found.append(measure(pictures, number))
            say(f"run {number + 1} of {runs}: {found[-1]}")
    no_winner = told("no winner between equals", [run.equal.verdict not in ("faster", "slower") for run in found])
    discovered = told(f"slowdown of {SLOWDOWN:.0%} found", [run.slowed.verdict == "slower" for run in found])
    ratios = sorted(run.slowed.ratio.value for run in found)
    click.echo(f"other processes took {others.share():.2f} CPUs meanwhile")
    click.echo(f"slowed by equal: {ratios[0]:.3f} to {ratios[-1]:.3f}, median {ratios[len(ratios) // 2]:.3f}")
    if not (no_winner and discovered):
        raise SystemExit(GateError.exit_code)


def pin() -> None:
    """Keep to one CPU, with all processes to come: those of a virtual machine change their speed each by itself."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def measure(pictures: Sequence[Path], seed: int) -> Run:
    """One run."""
    [row, *_] = rows_of(Bundle.open(BUILT_IN), "built-in")
    rows = [replace(row, label=label) for label in (FIRST, EQUAL, SLOWED)]
    cells = Cells(CELL, [_trial(pictures, rows, TRIALS * seed + number) for number in range(TRIALS)])
    said, control = {one.b: one for one in cells.comparisons()}, cells.control()
    assert control is not None
    return Run(said[EQUAL], said[SLOWED], control.ratio)


def _trial(pictures: Sequence[Path], rows: Sequence[Row], seed: int) -> Trial:
    """Fresh processes."""
    trial = Trial(pictures, THREADS)
    with trial.open(rows, seed, COMMANDS):
        trial.measure(CELL, PACE)
    for error in trial.failed.values():
        raise error
    return trial


def told(what: str, right: Sequence[bool]) -> bool:
    """Print a rate with its 95 % interval; returns whether it is enough."""
    rate = sum(right) / len(right)
    found = score("selftest", what, rate, len(right))
    passed = rate >= LEAST
    click.echo(
        f"{what}: {sum(right)} of {len(right)} = {rate:.1%} [{found.low:.1%}, {found.high:.1%}], "
        f"at least {LEAST:.0%}: {'PASS' if passed else 'MISS'}"
    )
    return passed


def slowed(call: timing.Call) -> timing.Call:
    """The call, and after it a wait of a tenth of what it took, in which the CPU works."""

    def slower() -> None:
        took = timing.elapsed(call)
        until = time.perf_counter() + SLOWDOWN * took
        while time.perf_counter() < until:
            pass

    return slower


if __name__ == "__main__":
    if sys.argv[1:2] == [WORKER]:
        worker.main(around=slowed if sys.argv[2] == SLOWED else lambda call: call)
    else:
        main()
