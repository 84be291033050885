"""What training runs came to, as Markdown: `python -m edgeclip.train.summary runs/teacher runs/student-*`.

Runs that differ in nothing but their seed make one row: the mean, with the 95 % interval that the seeds give. A single
run has the interval that the number of its test images gives.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edgeclip.errors import DataError, EdgeClipError
from edgeclip.scores import Score

RECIPE, SCORES, METRICS = "recipe.json", "scores.json", "metrics.jsonl"
_T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t for 95 % by the number of runs. Source: any table of the distribution, n - 1 degrees of freedom."""
_NOT_THE_MODEL = ("name", "seed", "output", "evaluate")

Cell = tuple[float, float, float]
"""A value and its interval."""


@dataclass(frozen=True)
class Finished:
    """One run."""

    name: str
    seed: int
    recipe: dict[str, Any]
    steps: int
    seconds: float
    """Of all steps: the mean of those that were logged, times their number. Reading and evaluating are not in it."""
    scores: dict[str, Score]
    """By data and metric, as `wds_cifar10/top1`."""

    @property
    def images(self) -> int:
        """That were seen, repeats included."""
        return self.steps * int(self.recipe["loop"]["batch_size"])

    @property
    def kind(self) -> str:
        """What runs of other seeds share."""
        rest = {key: value for key, value in self.recipe.items() if key not in _NOT_THE_MODEL}
        return json.dumps(rest, sort_keys=True)


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seed alone."""

    runs: Sequence[Finished]

    @property
    def name(self) -> str:
        """That of the runs, without the number of the seed."""
        return re.sub(r"-\d+$", "", self.runs[0].name)

    def cell(self, key: str) -> Cell | None:
        """The mean over seeds; None where it was not measured."""
        found = [run.scores[key] for run in self.runs if key in run.scores]
        if not found:
            return None
        if len(found) == 1:
            return found[0].value, found[0].low, found[0].high
        return spread([score.value for score in found])

    def gain(self, other: Row, key: str) -> Cell | None:
        """By how much this is above another, seed by seed."""
        theirs = {run.seed: run.scores.get(key) for run in other.runs}
        pairs = [(run.scores.get(key), theirs.get(run.seed)) for run in self.runs]
        gaps = [one.value - two.value for one, two in pairs if one is not None and two is not None]
        return spread(gaps) if len(gaps) > 1 else None


def spread(values: Sequence[float]) -> Cell:
    """Mean and 95 % interval of two to five values."""
    mean = statistics.fmean(values)
    half = _T95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def read_run(folder: Path) -> Finished:
    """What a finished run left in its folder.

    Raises:
        DataError: it is not finished, or no such folder.
    """
    try:
        recipe: dict[str, Any] = json.loads((folder / RECIPE).read_bytes())
        scores = msgspec.json.decode((folder / SCORES).read_bytes(), type=list[Score])
        lines = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as exc:
        raise DataError(f"{folder}: not a finished run: {exc}", hint="train it to its end, with [evaluate]") from exc
    timed = [line["step_s"] for line in lines if "step_s" in line]
    steps = max(line["step"] for line in lines)
    by_key = {f"{score.data}/{score.metric}": score for score in scores}
    return Finished(recipe["name"], recipe["seed"], recipe, steps, statistics.fmean(timed) * steps, by_key)


def rows(runs: Iterable[Finished]) -> list[Row]:
    """Runs by what they share, in the order in which they come."""
    grouped: dict[str, list[Finished]] = {}
    for run in runs:
        grouped.setdefault(run.kind, []).append(run)
    return [Row(group) for group in grouped.values()]


def table(found: Sequence[Row]) -> str:
    """What the runs cost; then a table of zero-shot top-1, and one for each retrieval set; a line for each row."""
    costs = markdown(["run", "seeds", "steps", "images", "minutes"], [_facts(row) for row in found])
    scores = [
        markdown(["run", *map(_short, keys)], [[row.name, *(_percent(row.cell(key)) for key in keys)] for row in found])
        for keys in _groups(found)
    ]
    return "\n".join([costs, *scores])


def gains(found: Sequence[Row]) -> str:
    """Of each row with several seeds over each other one, in percentage points."""
    many = [row for row in found if len(row.runs) > 1]
    pairs = [(one, two) for one in many for two in many if one is not two]
    tables = [
        markdown(
            ["difference", *map(_short, keys)],
            [[f"{a.name} − {b.name}", *(_percent(a.gain(b, key)) for key in keys)] for a, b in pairs],
        )
        for keys in _groups(many)
    ]
    return "\n".join(tables)


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, ["---"] * len(head), *body])


def _groups(found: Sequence[Row]) -> list[list[str]]:
    """The scores that make a table: all top-1 together, and those of each retrieval set."""
    grouped: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for row in found for run in row.runs for key in run.scores):
        data, _, metric = key.partition("/")
        grouped.setdefault(metric if metric == "top1" else data, []).append(key)
    return list(grouped.values())


def _facts(row: Row) -> list[str]:
    first = row.runs[0]
    minutes = statistics.fmean(run.seconds for run in row.runs) / 60
    return [row.name, str(len(row.runs)), str(first.steps), f"{first.images:,}", f"{minutes:.1f}"]


def _short(key: str) -> str:
    return key.removeprefix("wds_").replace("/", " ").replace("_", " ")


def _percent(cell: Cell | None) -> str:
    if cell is None:
        return "not measured"
    value, low, high = (f"{100 * x:.1f}" for x in cell)
    return f"{value} [{low}, {high}]"


def main(folders: Sequence[str]) -> int:
    """Print the tables of these runs."""
    try:
        found = rows(read_run(Path(folder)) for folder in folders)
    except EdgeClipError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code
    print(table(found))
    print(gains(found), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
