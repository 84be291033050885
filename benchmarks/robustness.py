"""Robustness under natural distribution shift: `python -m edgeclip.benchmarks.robustness` prints the built-in baseline.

Effective robustness is the accuracy on shifted data above what the accuracy on the original data predicts; the
prediction is a line through the accuracies of other models, both axes in logits. Relative robustness is the accuracy on
shifted data above a reference model's.

Source: R. Taori et al., "Measuring Robustness to Natural Distribution Shifts in Image Classification", arXiv
2007.00644; arXiv 2103.00020, section 3.3.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import msgspec
import numpy as np

from edgeclip.benchmarks import metrics
from edgeclip.benchmarks.metrics import Floats, Interval, Loss, Share
from edgeclip.cli.group import Command, examples
from edgeclip.cli.output import Output
from edgeclip.csvtable import read_table
from edgeclip.errors import DataError
from edgeclip.scores import Score

BUILT_IN = Path(__file__).parent / "openclip_accuracies.csv"
"""Zero-shot accuracies of 121 models on ImageNet and its shifts.

Source: github.com/mlfoundations/open_clip, docs/openclip_results.csv, MIT licence.
"""
FAMILIES: dict[str, tuple[str, ...]] = {
    "imagenet1k": ("imagenetv2", "imagenetr", "imagenetsketch", "imageneta", "objectnet"),
    "pacsphoto": ("pacsartpainting", "pacscartoon", "pacssketch"),
}
"""Original data -> its shifts, by `key`."""
LEAST = 3
"""Models that a line is drawn through."""


def key(name: str) -> str:
    """A data set's name without what its publishers put around and into it: `wds_imagenet-r` is `imagenetr`."""
    return re.sub(r"[-_/ ]", "", re.sub(r"^(wds[_/])?(vtab[-_/])?", "", name.lower()))


@dataclass(frozen=True)
class Line:
    """The accuracy on shifted data that an accuracy on the original data predicts."""

    slope: float
    intercept: float
    """Both in logits."""
    n: int
    """Models."""
    r2: float
    """The share of the variance of the logits that the line explains."""

    def predict(self, accuracy: float, n: int) -> float:
        """
        Args:
            accuracy: on the original data, a share of n images.
        """
        return float(_from_logit(self.slope * _logit(np.array(accuracy), n) + self.intercept))


def fit(original: Floats, shifted: Floats) -> Line:
    """Least squares in logits over models.

    Args:
        original, shifted: [M] accuracies, in (0, 1).
    """
    x, y = _logit(original), _logit(shifted)
    slope, intercept = np.polyfit(x, y, 1)
    left = y - slope * x - intercept
    r2 = 1 - float((left**2).sum() / ((y - y.mean()) ** 2).sum())
    return Line(float(slope), float(intercept), len(x), r2)


@dataclass(frozen=True)
class Baseline:
    """Accuracies of models, by data set."""

    path: Path
    columns: dict[str, Floats]
    """By the name of the data set, as it is written there; NaN where a model has none."""

    def line(self, original: str, shifted: str) -> Line | None:
        """The line of two data sets; None where fewer than three models have both.

        Raises:
            DataError: what is said to be an accuracy is no share.
        """
        x, y = self._column(original), self._column(shifted)
        if x is None or y is None:
            return None
        both = (np.minimum(x, y) > 0) & (np.maximum(x, y) < 1)
        return fit(x[both], y[both]) if both.sum() >= LEAST else None

    def _column(self, name: str) -> Floats | None:
        found = next((column for head, column in self.columns.items() if key(head) == key(name)), None)
        if found is not None and ((found < 0) | (found > 1)).any():
            raise DataError(f"{self.path}: {name}: not all are shares from 0 to 1", hint="write 63.3 % as 0.633")
        return found


def read_baseline(path: Path = BUILT_IN) -> Baseline:
    """A CSV with a column for each data set, whose head is its name, and a row for each model; or a folder of training
    runs, each with its `scores.json`.

    Raises:
        DataError: it cannot be read.
    """
    if path.is_dir():
        return Baseline(path, _from_runs(path))
    table = read_table(path)
    columns = {}
    for name in table.columns:
        cells = [(row[name] or "").strip() for row in table.rows]
        if any(cells) and all(not cell or _is_number(cell) for cell in cells):
            columns[name] = np.array([float(cell or "nan") for cell in cells])
    return Baseline(path, columns)


def _from_runs(folder: Path) -> dict[str, Floats]:
    runs = []
    for file in sorted(folder.glob("*/scores.json")):
        try:
            found = msgspec.json.decode(file.read_bytes(), type=list[Score])
        except (OSError, msgspec.DecodeError) as exc:
            raise DataError(f"{file}: cannot be read: {exc}") from exc
        runs.append({score.data: score.value for score in found if score.metric == "top1"})
    if not runs:
        raise DataError(f"{folder}: no training runs", hint="a folder of folders with scores.json")
    names = sorted({name for run in runs for name in run})
    return {name: np.array([run.get(name, np.nan) for run in runs]) for name in names}


@dataclass(frozen=True)
class Effective:
    """Effective robustness: the accuracy on shifted data above what the line predicts."""

    line: Line
    original: Share
    shifted: Share

    @property
    def value(self) -> float:
        return self.shifted.value - self.line.predict(self.original.value, self.original.n)

    @property
    def n(self) -> int:
        return self.shifted.n

    def interval(self) -> Interval:
        """By bootstrap over the images of both data sets; the line is taken as it is."""
        return metrics.percentiles(self._resampled())

    def loss(self, reference: Effective) -> Loss:
        found = metrics.percentiles(reference._resampled() - self._resampled())
        return Loss(100 * (reference.value - self.value), 100 * found.low, 100 * found.high)

    def _resampled(self) -> Floats:
        original = metrics.bootstrap(partial(_share, self.original), self.original.n, seed=1)
        shifted = metrics.bootstrap(partial(_share, self.shifted), self.shifted.n, seed=2)
        predicted = np.array([self.line.predict(one, self.original.n) for one in original])
        return np.asarray(shifted - predicted)


def _share(share: Share, drawn: metrics.Ints) -> float:
    return float(share.right[drawn].mean())


def _logit(accuracy: Floats, n: int = 0) -> Floats:
    """With n, 0 and 1 of n images are taken for half an image more or less."""
    inside = np.clip(accuracy, 0.5 / n, 1 - 0.5 / n) if n else accuracy
    return np.asarray(np.log(inside / (1 - inside)))


def _from_logit(logit: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logit)))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


@click.command(
    "robustness",
    cls=Command,
    epilog=examples(
        "python -m edgeclip.benchmarks.robustness",
        "python -m edgeclip.benchmarks.robustness --baseline docs/results --original pacs_photo",
    ),
)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    default=BUILT_IN,
    help="A CSV of accuracies, or a folder of training runs; the built-in CSV.",
)
@click.option("--original", default="imagenet1k", show_default=True, help="Column of the original data.")
@click.pass_obj
def command(output: Output, baseline: Path, original: str) -> None:
    """Show the lines that effective robustness is measured from, one for each shift in the baseline."""
    known = read_baseline(baseline)
    shares = [name for name, column in known.columns.items() if np.nanmax(column) <= 1 and key(name) != key(original)]
    lines = {name: known.line(original, name) for name in shares}
    found = {name: line for name, line in lines.items() if line is not None}
    if not found:
        raise DataError(f"{baseline}: no accuracies of {LEAST} models on {original} and another data set")
    output.document |= {"source": baseline.name, "original": original, "lines": found}
    output.table(
        f"Accuracy on shifted data by accuracy on {original}, a line in logits, from {baseline.name}",
        ("shift", "models", "slope", "intercept", "r2", *(f"at {share:.0%}" for share in _SHOWN)),
        [[name, str(one.n), *_digits(one), *_predicted(one)] for name, one in found.items()],
    )


_SHOWN = (0.4, 0.6, 0.8)


def _digits(line: Line) -> list[str]:
    return [f"{value:.3f}" for value in (line.slope, line.intercept, line.r2)]


def _predicted(line: Line) -> Sequence[str]:
    return [f"{100 * line.predict(share, 0):.1f} %" for share in _SHOWN]


if __name__ == "__main__":
    from edgeclip.cli import main

    sys.exit(main(command=command, name="python -m edgeclip.benchmarks.robustness"))
